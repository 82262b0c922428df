//! What the watch hears of the transactions of a real kernel, in a network namespace.

#[cfg(test)]
mod transactions;

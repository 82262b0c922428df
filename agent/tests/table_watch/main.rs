//! The watch of the table on the transactions of a real kernel, in a network namespace.

#[cfg(test)]
mod transactions;

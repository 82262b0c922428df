//! The two layers that hold windows, and what the broker knows of them.
//!
//! A target has a *host layer* (the agent's firewall on the machine itself, [`host`]) and, on a VM of a driven cloud, a
//! *cloud layer* (the rules of the cloud's network, [`cloud`]). A grant's window is open once every layer that it requires
//! has confirmed it, and closed once no layer may hold it any more.
//!
//! Both layers work alike. The reconciler hands over the whole desired state of a target; the layer brings it to the agent
//! or to the cloud, and remembers the answer. Nothing is asked of a layer besides that answer: [`observer`] is the one place
//! that says how a window stands, and [`report`] is how a layer is shown to people.

pub mod cloud;
mod failure_streak;
pub mod host;
pub mod observer;
pub mod report;

//! Whoever may write into the store, make a table or pin a snapshot chooses what we read and print; none of it may cost more than itself.

mod documents;
mod names;
mod secrets;

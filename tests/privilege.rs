//! Least privilege: what each host may do at the store, who may read the files, where secrets are, and who is believed.

mod modes;
mod policies;
mod role;
mod secrets;
mod tls;

//! Several repositories: copying, healing, writing to all, reading from whichever is sound.

pub mod copy;
mod loss;
pub mod several;

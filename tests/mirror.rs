//! Several repositories: copying, healing, writing to all, reading from whichever is sound.

mod away;
pub mod copy;
mod loss;
pub mod several;

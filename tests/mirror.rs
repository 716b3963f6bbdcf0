//! Several repositories: copying, healing, writing to all, reading from whichever is sound.

mod copy;

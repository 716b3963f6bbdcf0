//! variety

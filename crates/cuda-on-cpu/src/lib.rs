#![doc = include_str!("../README.md")]

pub mod build;
mod emulator;
mod launch;
mod product;
pub mod ptx;
pub mod sanitizer;
mod stand_in;

pub use emulator::{Block, Emulator, SHARED, mutate};
pub use launch::{Arg, Element, Launch, Matrix, Product};
pub use stand_in::StandIn;

/// What a card would refuse or leave undefined, or a fault of the caller, in one line.
pub type Result<T> = std::result::Result<T, String>;

//! The `sae` command.
fn main() {}

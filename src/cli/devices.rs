//! `sae devices`.

use super::{Global, print, print_json};
use crate::error::Result;

/// Runs the command.
pub fn run(global: &Global) -> Result<()> {
    let report = crate::devices::find();
    if global.json { print_json(&report) } else { print(&format!("{report}\n")) }
}

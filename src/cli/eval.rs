//! `sae eval`.

use super::{Global, SourceArgs, SplitArg, print, print_json};
use crate::analysis;
use crate::data::Part;
use crate::error::Result;
use crate::report::table::{number, table};
use crate::train::outputs::quality_row;

/// Arguments of `sae eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Rows to measure on [default: each split and all rows]
    #[arg(long)]
    split: Option<SplitArg>,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<()> {
    let request = global.source_of(args.source);
    let parts = match args.split {
        None => vec![Some(Part::Train), Some(Part::Val), Some(Part::Test), None],
        Some(split) => vec![split.part()],
    };
    let results = analysis::evaluate(&request, &parts)?;
    if global.json {
        return print_json(&results);
    }
    let header = ["split", "rows", "MSE", "MAE", "FVU", "L0", "cosine", "dead %"];
    let rows = results.iter().map(|r| {
        let mut row = quality_row(&r.split, &r.quality);
        row.push(number(100.0 * r.dead_fraction));
        row
    });
    print(&table(&header, &rows.collect::<Vec<_>>()))
}

//! `sae eval`.

use super::{Global, SourceArgs, SplitArg, print, print_json};
use crate::analysis::{self, EvalResult, EvalRows, NEW};
use crate::error::Result;
use crate::run::folder::names;
use crate::run::outputs::{prefix_table, quality_row};
use crate::text::{number, table};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Rows to measure on: ids in the run's splits.tsv are in the split named there, other ids are put into one by their
    /// hash [default: each split of the run, rows that are in none, and all rows]
    #[arg(long)]
    split: Option<SplitArg>,
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let request = global.source_of(args.source);
    let wanted = match args.split.map(SplitArg::part) {
        None => EvalRows::Each,
        Some(None) => EvalRows::All,
        Some(Some(part)) => EvalRows::Split(part),
    };
    let results = analysis::evaluate(&request, wanted, stop)?;
    if global.json {
        return print_json(&results);
    }
    let header = ["split", "rows", "MSE", "MAE", "FVU", "L0", "cosine", "dead on these rows"];
    let rows = results.iter().map(|r| {
        let mut row = quality_row(&r.split, &r.quality);
        row.push(format!("{} %", number(100.0 * r.dead_on_these_rows)));
        row
    });
    let table = table(&header, &rows.collect::<Vec<_>>());
    let splits: Vec<_> = results.iter().map(|r| (r.split.as_str(), &r.quality)).collect();
    let by_prefix = results.first().map_or(String::new(), |r| prefix_table(r.prefixes.ends(), &splits));
    let end = if by_prefix.is_empty() { "" } else { "\n" };
    let notes = notes(&request.model, wanted, &results);
    print(&format!("{}{by_prefix}{end}{notes}", if by_prefix.is_empty() { &table } else { table.trim_end() }))
}

/// What a table of figures does not say.
fn notes(model: &Path, wanted: EvalRows, results: &[EvalResult]) -> String {
    let mut text = String::new();
    if let Some(dead) = results.first().and_then(|r| r.dead_on_training_rows) {
        let summary = model.join(names::SUMMARY);
        text += &format!("dead on training rows: {} % ({})\n", number(100.0 * dead), summary.display());
    }
    let splits = model.join(names::SPLITS);
    let shown = splits.display();
    if results.iter().any(|r| r.split == NEW) {
        text += &format!("{NEW}: rows whose ids are not in {shown}; the model was not trained on them\n");
    } else if wanted == EvalRows::Each && results.len() == 1 {
        text += &match splits.is_file() {
            true => format!("no id of these rows is in {shown}: the model was trained on none of them\n"),
            false => format!(
                "{} has no {}: rows have no split; name a run folder\n",
                model.display(),
                names::SPLITS
            ),
        };
    }
    text
}

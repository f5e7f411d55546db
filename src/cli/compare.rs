//! `sae compare`.

use super::{Global, json, print_apart};
use crate::analysis::compare::{RunRow, compare};
use crate::error::Result;
use crate::files;
use crate::report::plots::frontier::render_frontier;
use crate::report::views::{Frontier, Point};
use crate::run::folder::files_of;
use crate::run::{Kind, Output, Outputs};
use crate::text::{number, table};
use std::path::{Path, PathBuf};

/// Arguments of `sae compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folders
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Draw validation FVU against L0 into this PNG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Replace the plot if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    if let Some(path) = &args.plot {
        let inputs: Vec<PathBuf> = args.runs.iter().flat_map(|run| files_of(run)).collect();
        let files = &[Output { flag: "--plot", path, kind: Kind::Png }];
        Outputs { files, inputs: &inputs, overwrite: args.overwrite, ..Default::default() }.check()?;
    }
    let rows = compare(&args.runs)?;
    if let Some(path) = &args.plot {
        draw(&rows, path)?;
    }
    let outputs: Vec<&Path> = args.plot.iter().map(PathBuf::as_path).collect();
    if global.json {
        return print_apart(&outputs, &json(&rows)?);
    }
    print_apart(&outputs, &table_of(&rows))
}

/// Runs as a table.
pub fn table_of(rows: &[RunRow]) -> String {
    let header =
        ["run", "preset", "activation", "tied", "M", "k", "steps", "val FVU", "val L0", "dead %", "rows/s"];
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    let mut text = table(&header, &lines);
    if rows.iter().any(|r| !r.finished) {
        text.push_str("* not finished: the last evaluation in metrics.csv\n");
    }
    text
}

/// Draws validation FVU against L0.
pub fn draw(rows: &[RunRow], path: &Path) -> Result<()> {
    let point = |r: &RunRow| {
        Some(Point { name: r.run.clone(), l0: r.val_l0?, fvu: r.val_fvu?, finished: r.finished })
    };
    let plot = Frontier { points: rows.iter().filter_map(point).collect() };
    files::write_whole(path, &render_frontier(&plot)?)
}

fn line(r: &RunRow) -> Vec<String> {
    let figure = |v: Option<f64>| v.map_or("-".to_owned(), number);
    let size = |v: Option<usize>| v.map_or("-".to_owned(), |v| v.to_string());
    vec![
        r.run.clone(),
        r.preset.map_or("-".to_owned(), |p| p.to_string()),
        r.activation.clone(),
        if r.tied { "tied" } else { "untied" }.to_owned(),
        size(r.n_latents),
        size(r.k),
        format!("{}{}", r.steps, if r.finished { "" } else { "*" }),
        figure(r.val_fvu),
        figure(r.val_l0),
        figure(r.dead_fraction.map(|v| 100.0 * v)),
        figure(r.rows_per_second),
    ]
}

//! `sae features`.

use super::track::{self, TrackArgs};
use super::{Global, MemoryArg, SourceArgs, SplitArg, json, print_apart};
use crate::analysis::features::tables::{write_associations, write_features};
use crate::analysis::features::{
    Feature, Features, FeaturesRequest, Finding, LabelResult, Q_LIMIT, features,
};
use crate::analysis::labels::choose::LabelOptions;
use crate::console;
use crate::error::{Error, Result};
use crate::files;
use crate::run::{Kind, Output, Outputs};
use crate::text::{number, table, thousands};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Latents in the table that is printed beside a file.
const SHOWN: usize = 15;
/// Characters of a label in it.
const LABEL_WIDTH: usize = 76;

/// Arguments of `sae features`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Table with one line per latent; lists separated by ";", where %3B is a ; inside an id and %25 a % [default: to
    /// standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    overwrite: bool,
    /// Rows to look at
    #[arg(long, default_value = "all")]
    split: SplitArg,
    /// Ids per latent: those that fire it most
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
    /// Nearest latents by cosine of decoder rows; 0 leaves them out
    #[arg(long, default_value_t = 5, value_name = "N")]
    neighbours: usize,
    #[command(flatten)]
    labels: LabelArgs,
    /// Table with one line per test: every latent with every label
    #[arg(long, value_name = "FILE", requires = "labels")]
    associations: Option<PathBuf>,
    #[command(flatten)]
    memory: MemoryArg,
    #[command(flatten)]
    along: TrackArgs,
}

/// Arguments that say what the labels of ids are.
#[derive(Debug, clap::Args)]
pub struct LabelArgs {
    /// Labels: a tab-separated table with a header; the id, then label columns; several values of a cell separated by ";"
    /// (%3B is a ; that belongs to a value). Fields may be quoted as R and pandas do it
    #[arg(long, value_name = "TSV")]
    labels: Option<PathBuf>,
    /// Columns to use, separated by "," [default: all but numbers and free text]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "labels")]
    columns: Option<Vec<String>>,
    /// Rows that a label needs, and as many known to be without it
    #[arg(long, default_value_t = 10, value_name = "N", requires = "labels")]
    min_rows: u64,
    /// Most values of a column that --columns does not name
    #[arg(long, default_value_t = 500, value_name = "N", requires = "labels")]
    max_values: usize,
    #[command(flatten)]
    unknown: UnknownArgs,
    /// Take an id's rows together: a latent's activation is the largest over them (per-residue files).
    /// Labels of single rows are not used then
    #[arg(long)]
    pool: bool,
}

/// Arguments that say which cells of a table of labels are unknown.
#[derive(Debug, clap::Args)]
pub struct UnknownArgs {
    /// Values that mean unknown, as an empty cell does, separated by ","
    #[arg(
        long,
        value_name = "VALUES",
        value_delimiter = ',',
        default_value = "NA,N/A,NaN,nan",
        requires = "labels"
    )]
    unknown: Vec<String>,
    /// Take NA, N/A, NaN and nan as labels; only an empty cell is unknown
    #[arg(long, requires = "labels", conflicts_with = "unknown")]
    keep_na: bool,
}

impl UnknownArgs {
    /// The values.
    pub fn resolve(self) -> Vec<String> {
        if self.keep_na { vec![] } else { self.unknown }
    }
}

impl LabelArgs {
    /// Whether an id's rows are taken together.
    pub fn pool(&self) -> bool {
        self.pool
    }

    /// The table and how to read it.
    pub fn resolve(self) -> Option<(PathBuf, LabelOptions)> {
        let options = LabelOptions {
            columns: self.columns,
            min_rows: self.min_rows.max(1),
            max_values: self.max_values,
            unknown: self.unknown.resolve(),
        };
        self.labels.map(|path| (path, options))
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let Args { out, associations, overwrite, mut along, .. } = args;
    if let Some(id) = along.track.take() {
        return track::run(id, along, (out, overwrite), global.source_of(args.source), global, stop);
    }
    let request = FeaturesRequest {
        split: args.split.part(),
        pool: args.labels.pool(),
        top: args.top,
        neighbours: args.neighbours,
        labels: args.labels.resolve(),
        memory: args.memory.bytes(),
        outputs: [&out, &associations].into_iter().flatten().cloned().collect(),
        source: global.source_of(args.source),
    };
    let mut inputs = request.source.inputs();
    inputs.extend(request.labels.iter().map(|(path, _)| path.clone()));
    let named = [("--out", &out), ("--associations", &associations)];
    let files: Vec<Output<'_>> = named
        .iter()
        .filter_map(|(flag, path)| Some(Output { flag, path: path.as_deref()?, kind: Kind::Text }))
        .collect();
    let outputs: Vec<&Path> = files.iter().map(|file| file.path).collect();
    Outputs { files: &files, inputs: &inputs, overwrite, ..Default::default() }.check()?;
    let mut found = features(&request, stop)?;
    if !global.quiet {
        found.warnings().iter().for_each(console::warn);
    }
    if let (Some(path), Some(labels)) = (&associations, &found.labels) {
        write(path, |file| write_associations(file, &labels.associations, &labels.labels))?;
    }
    let Some(path) = &out else {
        let text = if global.json { json(&found)? } else { table_of(&found)? };
        return print_apart(&outputs, &text);
    };
    write(path, |file| write_features(file, &found))?;
    if global.json {
        // The latents are in the file.
        found.latents.clear();
        return print_apart(&outputs, &json(&found)?);
    }
    let more = associations.as_ref().map_or(String::new(), |path| format!(" and {}", path.display()));
    print_apart(&outputs, &format!("{}{more}: {}", path.display(), summary(&found)))
}

fn table_of(found: &Features) -> Result<String> {
    let mut text = vec![];
    write_features(&mut text, found).map_err(Error::io(Path::new("standard output"), "write"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&std::fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    files::write_with(path, |file| {
        let mut file = BufWriter::new(file);
        fill(&mut file).and_then(|()| file.flush()).map_err(Error::io(path, "write"))
    })
}

fn summary(found: &Features) -> String {
    let mut text = format!(
        "{} latents, {} active on {} rows\n",
        thousands(found.width as u64),
        thousands(found.alive as u64),
        thousands(found.rows)
    );
    match &found.labels {
        Some(labels) => text.push_str(&label_summary(found, labels)),
        None => text.push_str(&most_active(found)),
    }
    text
}

fn label_summary(found: &Features, labels: &LabelResult) -> String {
    let mut text = format!(
        "{} labels ({} values left out: too few rows with or without them), {} tests, {} with q < {Q_LIMIT} in {} latents\n\n",
        labels.labels.len(),
        thousands(labels.told.rare_values),
        thousands(labels.n_tests as u64),
        thousands(labels.n_found as u64),
        thousands(labels.n_latents_found as u64),
    );
    let finding =
        |f| -> Option<(&Feature, &Finding)> { Some((f, f.best.as_ref().filter(|b| b.q < Q_LIMIT)?)) };
    let mut best: Vec<_> = found.latents.iter().filter_map(finding).collect();
    best.sort_by(|a, b| b.1.f1.total_cmp(&a.1.f1));
    let lines: Vec<Vec<String>> = best
        .iter()
        .take(SHOWN)
        .map(|(f, best)| {
            let figures = [100.0 * f.firing_rate, best.precision, best.recall, best.f1, best.auroc, best.q];
            let mut line = vec![f.latent.to_string()];
            line.extend(figures.map(number));
            line.push(shortened(&format!("{}: {}", best.column, best.label)));
            line
        })
        .collect();
    text += &table(&["latent", "rate %", "precision", "recall", "F1", "AUROC", "q", "best label"], &lines);
    text
}

/// At most as much of a label as a line of a terminal holds, its two ends: labels of one kind often begin alike.
fn shortened(text: &str) -> String {
    let n = text.chars().count();
    if n <= LABEL_WIDTH {
        return text.to_owned();
    }
    let part = |from: usize, count: usize| text.chars().skip(from).take(count).collect::<String>();
    let half = LABEL_WIDTH / 2 - 1;
    format!("{}...{}", part(0, half), part(n - half, half))
}

fn most_active(found: &Features) -> String {
    let mut by_activation: Vec<_> = found.latents.iter().filter(|f| f.active_rows > 0).collect();
    by_activation.sort_by(|a, b| b.max_activation.unwrap_or(0.0).total_cmp(&a.max_activation.unwrap_or(0.0)));
    let lines: Vec<Vec<String>> = by_activation
        .iter()
        .take(SHOWN)
        .map(|f| {
            let ids: Vec<&str> = f.top.iter().take(3).map(|t| t.id.as_str()).collect();
            vec![
                f.latent.to_string(),
                number(100.0 * f.firing_rate),
                f.mean_activation.map_or(String::new(), number),
                f.max_activation.map_or(String::new(), |v| number(f64::from(v))),
                ids.join(", "),
            ]
        })
        .collect();
    format!("\n{}", table(&["latent", "rate %", "mean", "max", "first ids"], &lines))
}

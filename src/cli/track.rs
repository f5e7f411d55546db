//! `sae features --track`.

use super::options::choice;
use super::{Global, json, print_apart};
use crate::analysis::Source;
use crate::analysis::features::track::{Track, TrackLatent, TrackRequest, track};
use crate::analysis::structure::{Matching, Placed, Structure, chain_label};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt::check_flag;
use crate::report::plots::strips::render_strips;
use crate::report::views::{Strip, Strips};
use crate::run::{Kind, Output, Outputs};
use crate::text::{number, table};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Stands for a latent's number in the name of a file.
const LATENT: &str = "{latent}";

/// Arguments of a track.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Along one id")]
pub struct TrackArgs {
    /// Show latents along the rows of one id, such as the residues of a protein, in place of a line per latent: --out is
    /// then a table with one line per row
    #[arg(long, value_name = "ID", conflicts_with_all = [
        "split", "top", "neighbours", "labels", "columns", "min_rows", "max_values", "unknown", "keep_na", "pool",
        "associations", "memory",
    ])]
    pub track: Option<String>,
    /// Latents to show, separated by "," [default: the 8 with the largest activations along these rows]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "track")]
    latents: Option<Vec<u32>>,
    /// Rows at the start and at the end that are tokens and no residues: 1,1 for ESM, 0,1 for ProtT5, where they were left
    /// in [default: 0,0]
    #[arg(long, value_name = "START,END", requires = "track", value_parser = tokens)]
    tokens: Option<(u32, u32)>,
    /// Draw the latents along the rows into this PNG file
    #[arg(long, value_name = "FILE.png", requires = "track")]
    plot: Option<PathBuf>,
    /// Structure of the protein: a PDB or mmCIF file, which may be gzipped. --coloured is a copy of it
    #[arg(long, value_name = "FILE", requires_all = ["track", "coloured"])]
    structure: Option<PathBuf>,
    /// Copy of the structure that shows the first of the latents as B-factors: 100 is its largest activation along the
    /// protein, 0 stands for all that is no residue of it. With {latent} in the name there is a copy for each of --latents
    #[arg(long, value_name = "FILE", requires = "structure")]
    coloured: Option<PathBuf>,
    /// Chains of the structure that are this protein, separated by "," [default: the first with as many residues as rows]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "structure")]
    chain: Vec<String>,
    /// How residues of the structure are matched with rows [default: order]
    #[arg(long = "match", value_name = "HOW", requires = "structure", value_parser = choice::<Matching>())]
    matching: Option<Matching>,
}

fn tokens(text: &str) -> std::result::Result<(u32, u32), String> {
    let pair = || {
        let (start, end) = text.split_once(',')?;
        Some((start.trim().parse().ok()?, end.trim().parse().ok()?))
    };
    pair().ok_or_else(|| "give two numbers, START,END, such as 1,1".to_owned())
}

/// What is printed.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    track: &'a Track,
    /// The coloured copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    structure: Option<Coloured<'a>>,
}

/// What became of the structure.
#[derive(Serialize)]
struct Coloured<'a> {
    #[serde(flatten)]
    placed: &'a Placed,
    /// Files with the latent that each shows.
    files: Vec<ColouredFile<'a>>,
}

#[derive(Serialize)]
struct ColouredFile<'a> {
    #[serde(serialize_with = "files::path_as_text")]
    path: &'a Path,
    latent: u32,
}

/// Runs the command.
pub fn run(
    id: String,
    args: TrackArgs,
    (out, overwrite): (Option<PathBuf>, bool),
    source: Source,
    global: &Global,
    stop: &AtomicBool,
) -> Result<()> {
    let copies = args.copies()?;
    let mut inputs = source.inputs();
    inputs.extend(args.structure.clone());
    let mut written: Vec<Output<'_>> = vec![];
    for (flag, path, kind) in [("--out", &out, Kind::Text), ("--plot", &args.plot, Kind::Png)] {
        written.extend(path.as_deref().map(|path| Output { flag, path, kind }));
    }
    written.extend(copies.iter().map(|path| Output { flag: "--coloured", path, kind: Kind::Text }));
    Outputs { files: &written, inputs: &inputs, overwrite, ..Default::default() }.check()?;
    // Read first: a mistake in it is told of before the rows are encoded.
    let structure = args.structure.as_deref().map(Structure::read).transpose()?;
    if let (Some(structure), Some(path)) = (&structure, copies.first()) {
        structure.check_copy("--coloured", path)?;
    }
    let request = TrackRequest { source, id, latents: args.latents, tokens: args.tokens.unwrap_or_default() };
    let found = track(&request, stop)?;
    let placed = match &structure {
        Some(structure) => {
            found.check_whole()?;
            let matching = args.matching.unwrap_or(Matching::Order);
            Some(structure.place((&found.id, found.positions.len()), &args.chain, matching)?)
        }
        None => None,
    };
    check_flag(stop)?;
    let mut text = vec![];
    found.write_table(&mut text).map_err(Error::io(Path::new("the table"), "write"))?;
    if let Some(path) = &out {
        files::write_whole(path, &text)?;
    }
    if let Some(path) = &args.plot {
        files::write_whole(path, &render_strips(&strips(&found))?)?;
    }
    if let (Some(structure), Some(placed)) = (&structure, &placed) {
        for (path, latent) in copies.iter().zip(&found.latents) {
            files::write_whole(path, &structure.with_b_factors(placed, &latent.per_cent()))?;
        }
    }
    let structure = placed.as_ref().map(|placed| Coloured {
        placed,
        files: copies
            .iter()
            .zip(&found.latents)
            .map(|(path, of)| ColouredFile { path, latent: of.latent })
            .collect(),
    });
    let shown = Shown { track: &found, structure };
    let text = match (global.json, &out) {
        (true, _) => json(&shown)?,
        (false, None) => String::from_utf8_lossy(&text).into_owned(),
        (false, Some(_)) => summary(&shown),
    };
    let outputs: Vec<&Path> = written.iter().map(|file| file.path).collect();
    print_apart(&outputs, &text)
}

impl TrackArgs {
    /// The coloured copies of the structure: one, or one per latent.
    fn copies(&self) -> Result<Vec<PathBuf>> {
        let Some(path) = &self.coloured else { return Ok(vec![]) };
        let name = match path.to_str() {
            Some(name) if name.contains(LATENT) => name,
            _ => return Ok(vec![path.clone()]),
        };
        let latents = self.latents.as_ref().ok_or_else(|| {
            Error::Usage(format!(
                "--coloured {name} makes a file for each of --latents, and none is named; name them, as in --latents 12,40"
            ))
        })?;
        Ok(latents.iter().map(|latent| name.replace(LATENT, &latent.to_string()).into()).collect())
    }
}

fn strips(track: &Track) -> Strips {
    let strip = |of: &TrackLatent| Strip {
        name: format!("latent {}", of.latent),
        activations: of.activations.clone(),
    };
    Strips {
        title: format!("Latents along {}", track.id),
        positions: track.positions.clone(),
        strips: track.latents.iter().map(strip).collect(),
    }
}

fn listed(chains: &[String]) -> String {
    chains.iter().map(|name| chain_label(name)).collect::<Vec<_>>().join(", ")
}

/// The result as a person reads it, beside a file.
fn summary(shown: &Shown<'_>) -> String {
    let Shown { track, structure } = shown;
    let mut text =
        format!("{}: {} rows, {} latents\n\n", track.id, track.positions.len(), track.latents.len());
    let line = |of: &TrackLatent| {
        vec![
            of.latent.to_string(),
            of.active_rows.to_string(),
            number(f64::from(of.max_activation)),
            of.max_position.map_or(String::new(), |position| position.to_string()),
        ]
    };
    let lines: Vec<Vec<String>> = track.latents.iter().map(line).collect();
    text += &table(&["latent", "active rows", "max", "at position"], &lines);
    let Some(Coloured { placed, files }) = structure else { return text };
    text += &format!("\n{} residues of chain {}", placed.residues, listed(&placed.chains));
    if placed.without_row > 0 {
        text += &format!(", {} more have no row", placed.without_row);
    }
    text.push('\n');
    if !placed.alike.is_empty() {
        text += &format!(
            "as long: chain {}; --chain {} colours these too\n",
            listed(&placed.alike),
            [placed.chains.as_slice(), placed.alike.as_slice()].concat().join(",")
        );
    }
    for (file, of) in files.iter().zip(&track.latents) {
        let path = file.path.display();
        text += &match of.max_position {
            Some(_) => {
                let most = number(f64::from(of.max_activation.abs()));
                format!("{path}: B-factor 100 is an activation of {most} of latent {}\n", of.latent)
            }
            None => format!("{path}: all B-factors are 0, for latent {} is active on no row\n", of.latent),
        };
    }
    text
}

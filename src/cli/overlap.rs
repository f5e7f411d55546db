//! `sae overlap`.

use super::features::UnknownArgs;
use super::{Global, MemoryArg, SourceArgs, SplitArg, json, print_apart};
use crate::analysis::overlap::{Active, Group, Measure, Overlap, OverlapRequest, Pair, largest_but, overlap};
use crate::console;
use crate::error::Result;
use crate::files;
use crate::interrupt::check_flag;
use crate::report::plots::groups::render_panels;
use crate::report::views::{Dot, Panel};
use crate::text::{number, table, thousands};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Latents listed of each group.
const LISTED: usize = 5;

/// Arguments of `sae overlap`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Table: tab-separated, a header, ids first; several labels of a cell separated by ";" (%3B is a ; that belongs to
    /// a label), unknown ones empty. Fields may be quoted as R and pandas do it
    #[arg(long, value_name = "TSV")]
    labels: PathBuf,
    /// Its column [default: the only one]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Labels to compare, two or more; may be given several times, a label with a comma by itself [default: all
    /// of the column, at most 8]
    #[arg(long, value_name = "A,B,...")]
    groups: Vec<String>,
    #[command(flatten)]
    unknown: UnknownArgs,
    /// Leave out ids in several of the groups [default: they count in each]
    #[arg(long)]
    exclusive: bool,
    /// A latent is active in a group if more than this share of its rows activate it. With L active latents per row
    /// at most L / SHARE latents can be, however many the model has
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    threshold: f64,
    /// ... and its mean activation over all rows of the group is above this
    #[arg(long, value_name = "VALUE", default_value_t = 0.0)]
    min_activation: f64,
    /// Shuffles of the labels among the ids of two groups, for what chance would give; 0 is none
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    permutations: u32,
    /// Seed of the shuffles
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Rows to use
    #[arg(long, default_value = "all")]
    split: SplitArg,
    /// Write every latent's share and mean activation in each group into this table
    #[arg(short, long, value_name = "FILE.tsv")]
    out: Option<PathBuf>,
    /// Draw the latents' shares in two groups against each other into this PNG file
    #[arg(long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
    /// Replace these files if they exist
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    memory: MemoryArg,
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let outputs = [("--out", &args.out), ("--plot", &args.plot)];
    let request = OverlapRequest {
        split: args.split.part(),
        source: global.source_of(args.source),
        labels: args.labels,
        column: args.column,
        groups: args.groups,
        unknown: args.unknown.resolve(),
        exclusive: args.exclusive,
        active: Active { threshold: args.threshold, min_activation: args.min_activation },
        permutations: args.permutations as usize,
        seed: args.seed,
        memory: args.memory.bytes(),
        outputs: outputs.into_iter().filter_map(|(flag, path)| Some((flag, path.clone()?))).collect(),
        overwrite: args.overwrite,
    };
    let done = overlap(&request, stop)?;
    check_flag(stop)?;
    if !global.quiet {
        for unknown in &done.unknown_cells {
            console::warn(format_args!("{}: {}", request.labels.display(), unknown.text()));
        }
    }
    if let Some(path) = &args.out {
        files::write_whole(path, done.latent_table().as_bytes())?;
    }
    if let Some(path) = &args.plot {
        files::write_whole(path, &render_panels(&panels(&done), args.threshold)?)?;
    }
    let text = if global.json { json(&done)? } else { text(&done) };
    let outputs: Vec<&Path> = [&args.out, &args.plot].into_iter().flatten().map(PathBuf::as_path).collect();
    print_apart(&outputs, &text)
}

/// The result as a person reads it.
fn text(o: &Overlap) -> String {
    let mut out = counts(o);
    let mut least = format!("more than {} of a group's rows", percent(Some(o.active.threshold)));
    if o.active.min_activation > 0.0 {
        least += &format!(", mean activation above {}", number(o.active.min_activation));
    }
    out += &format!("active: a latent of {least}\n");
    let few = |g: &&Group| g.rows as f64 * o.active.threshold < 1.0;
    if let Some(group) = o.groups.iter().find(few) {
        out += &format!(
            "note: a single row of \"{}\" ({}) is above the threshold; raise --threshold\n",
            group.name, group.rows
        );
    }
    if o.groups.iter().all(|g| g.active == 0) {
        out += "note: no latent is active in any group; lower --threshold or --min-activation\n";
    }
    out.push('\n');
    let lines: Vec<Vec<String>> = o
        .groups
        .iter()
        .map(|g| {
            let figures = [thousands(g.ids), thousands(g.rows), number(g.l0)];
            [vec![g.name.clone()], figures.to_vec(), vec![g.active.to_string(), g.specific.to_string()]]
                .concat()
        })
        .collect();
    out += &table(&["group", "ids", "rows", "L0", "latents active", "specific to it"], &lines);
    out += &format!("active in all groups: {}\n", o.shared_by_all);
    for pair in &o.pairs {
        let active = |name: &str| format!("active in {name}");
        let share = |name: &str| format!("shared, of those active in {name}");
        let lines = [
            measure_line(active(&pair.a), &pair.active_a, count),
            measure_line(active(&pair.b), &pair.active_b, count),
            measure_line("shared".into(), &pair.shared, count),
            measure_line("shared, of those active in either (Jaccard)".into(), &pair.jaccard, percent),
            measure_line(share(&pair.a), &pair.share_of_a, percent),
            measure_line(share(&pair.b), &pair.share_of_b, percent),
        ];
        let names = format!("{} and {}", pair.a, pair.b);
        out.push('\n');
        out += &table(&[&names, "observed", "shuffled", "95 % of shuffles", "p"], &lines);
    }
    out + &specific(o)
}

/// What became of the ids.
fn counts(o: &Overlap) -> String {
    let ids = &o.ids;
    let mut parts = vec![format!("{} in the groups", thousands(ids.in_groups))];
    let treated = if o.exclusive { "left out" } else { "counted in each" };
    let rest = [
        (ids.in_several, format!("in several of them ({treated})")),
        (ids.other_labels, "with other labels".to_owned()),
        (ids.unlabelled, "without a label".to_owned()),
        (ids.not_in_table, "not in the table".to_owned()),
    ];
    parts
        .extend(rest.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", thousands(n))));
    format!("ids: {}\n", parts.join(", "))
}

fn measure_line(name: String, m: &Measure, show: fn(Option<f64>) -> String) -> Vec<String> {
    let range = match (m.shuffled_low, m.shuffled_high) {
        (Some(low), Some(high)) => format!("{} to {}", show(Some(low)), show(Some(high))),
        _ => "-".to_owned(),
    };
    let p = m.p.map_or("-".to_owned(), number);
    vec![name, show(m.observed), show(m.shuffled_mean), range, p]
}

fn count(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |v| {
        let text = format!("{v:.1}");
        text.strip_suffix(".0").unwrap_or(&text).to_owned()
    })
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |v| format!("{:.1} %", 100.0 * v))
}

/// The most specific latents of each group.
fn specific(o: &Overlap) -> String {
    let mut lines = vec![];
    for (i, group) in o.groups.iter().enumerate() {
        for (j, latent) in o.specific(i).into_iter().take(LISTED) {
            lines.push(vec![
                group.name.clone(),
                j.to_string(),
                percent(Some(latent.shares[i])),
                percent(Some(largest_but(&latent.shares, i))),
                number(latent.means[i]),
                number(largest_but(&latent.means, i)),
            ]);
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let header = ["specific to", "latent", "rows", "rows elsewhere", "mean", "mean elsewhere"];
    format!("\n{}", table(&header, &lines))
}

/// A panel a pair.
fn panels(o: &Overlap) -> Vec<Panel> {
    let place = |name: &str| o.groups.iter().position(|g| g.name == name).unwrap_or(0);
    let panel = |pair: &Pair| {
        let (a, b) = (place(&pair.a), place(&pair.b));
        let rows = o.groups[a].rows.max(o.groups[b].rows);
        let dots = o
            .latents
            .iter()
            .map(|l| Dot { shares: (l.shares[a], l.shares[b]), active: (l.active[a], l.active[b]) });
        let chance = pair.jaccard.shuffled_mean.map(|v| format!(", shuffled {}", percent(Some(v))));
        Panel {
            names: (pair.a.clone(), pair.b.clone()),
            caption: format!("Jaccard {}{}", percent(pair.jaccard.observed), chance.unwrap_or_default()),
            least: 0.5 / rows as f64,
            dots: dots.collect(),
        }
    };
    o.pairs.iter().map(panel).collect()
}

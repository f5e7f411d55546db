//! A run as one HTML file that needs nothing else: no network, no fonts, no scripts but its own.
//!
//! Whatever comes from data (ids, labels, paths, options) goes through [`escape`]; the page's policy forbids it to load
//! or send anything even so.

pub mod chart;
mod features;
#[cfg(test)]
mod tests;

use crate::analysis::features::{Feature, Features, Finding};
use crate::run::outputs::Summary;
use crate::text::{number, thousands};
use crate::train::metrics::Quality;
use chart::Histogram;
use std::collections::HashSet;
use std::fmt::Write;

use super::views::CurvePlot;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// A run and what its latents do.
#[derive(Debug)]
pub struct Page {
    /// The run's name.
    pub title: String,
    /// What is known of the model in a line.
    pub about: String,
    /// Options of the run, name and value.
    pub options: Vec<(String, String)>,
    /// Final figures, of a run that is finished.
    pub summary: Option<Summary>,
    /// Curves over the steps.
    pub curves: Vec<CurvePlot>,
    /// Firing rates of latents and activations.
    pub histograms: Vec<Histogram>,
    /// What latents do.
    pub features: Features,
    /// The latents that are shown, the strongest first, with what is known of the ids of each.
    pub shown: Vec<Shown>,
    /// Numbers of these, which others link to.
    pub linked: HashSet<u32>,
    /// For each label the latent that predicts it best.
    pub by_label: Vec<(u32, Finding)>,
    /// Which rows were looked at, in words.
    pub rows: String,
    /// The version that made it.
    pub version: String,
}

/// A latent in the table.
#[derive(Debug)]
pub struct Shown {
    /// Its place in [`Features::latents`].
    pub at: usize,
    /// Labels of its ids, in their order; empty without labels.
    pub labels_of_ids: Vec<IdLabel>,
}

/// What is known of an id in the column of the label that a latent predicts best.
#[derive(Debug, Default)]
pub struct IdLabel {
    /// Its values; empty where nothing is known.
    pub text: String,
    /// Whether the best label is among them.
    pub borne: bool,
}

impl Page {
    fn feature(&self, shown: &Shown) -> &Feature {
        &self.features.latents[shown.at]
    }
}

/// The text with the five characters that mean something in HTML replaced, for text and for quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // No place in HTML; a browser would show a replacement of its own.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The whole page.
pub fn render(page: &Page) -> String {
    let title = escape(&page.title);
    let mut body = format!(
        "<header><h1>{title}</h1><p class=\"about\">{}</p><nav><a href=\"#metrics\">metrics</a>\
         <a href=\"#curves\">curves</a>{}<a href=\"#by-latent\">features</a><a href=\"#settings\">settings</a></nav>\
         </header>\n<main>\n",
        escape(&page.about),
        page.features.labels.as_ref().map_or("", |_| "<a href=\"#by-label\">labels</a>")
    );
    body += &tiles(page);
    body += &metrics(page);
    body += &charts(page);
    body += &dead(page);
    body += &features::labels(page);
    body += &features::table(page);
    body += &settings(page);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} - sae report</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</main>\n\
         <footer>Made by sae {} from {}.</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(&page.version),
        escape(&page.rows)
    )
}

/// The figures that are looked at first.
fn tiles(page: &Page) -> String {
    let f = &page.features;
    let share = 100.0 * f.alive as f64 / f.width.max(1) as f64;
    let mut tiles = vec![];
    if let Some(val) = page.summary.as_ref().and_then(|s| s.val) {
        tiles.push(("FVU, validation", number(val.fvu)));
        tiles.push(("active latents per row", number(val.l0)));
    }
    tiles.push((
        "latents that fire",
        format!("{} of {}", thousands(f.alive as u64), thousands(f.width as u64)),
    ));
    tiles.push(("share that fires", format!("{} %", number(share))));
    if let Some(labels) = &f.labels {
        tiles.push(("labels", labels.labels.len().to_string()));
        tiles.push(("latents that predict one", thousands(labels.n_latents_found as u64)));
    }
    let tiles: String = tiles
        .iter()
        .map(|(name, value)| format!("<div class=\"tile\"><b>{}</b><span>{name}</span></div>", escape(value)))
        .collect();
    format!("<section class=\"tiles\" aria-label=\"Summary\">{tiles}</section>\n")
}

fn metrics(page: &Page) -> String {
    let Some(summary) = &page.summary else {
        return "<section id=\"metrics\"><h2>Final metrics</h2><p>The run is not finished: it has none yet.</p></section>\n"
            .into();
    };
    let mut rows = String::new();
    for (name, quality) in [("train", summary.train), ("val", summary.val), ("test", summary.test)] {
        let Some(q) = quality else { continue };
        let cells: String = [q.mse, q.mae, q.fvu, q.l0, q.cosine]
            .iter()
            .map(|v| format!("<td>{}</td>", number(*v)))
            .collect();
        let _ = write!(rows, "<tr><th scope=\"row\">{name}</th><td>{}</td>{cells}</tr>", thousands(q.rows));
    }
    let dead = number(100.0 * summary.dead_fraction);
    let by_prefix = by_prefix(summary);
    format!(
        "<section id=\"metrics\"><h2>Final metrics</h2><div class=\"scroll\"><table class=\"figures\"><thead><tr><th>split</th>\
         <th>rows</th><th>MSE</th><th>MAE</th><th>FVU</th><th>L0</th><th>cosine</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>\n{by_prefix}<p class=\"note\">MSE and MAE are means over rows and values in the \
         data's units; FVU is the squared error over the squared distance to the mean of the training split; L0 is \
         the mean number of active latents. Dead on training rows: {dead} %. {} training rows per second on {} \
         ({}).</p></section>\n",
        number(summary.rows_per_second),
        escape(&summary.device),
        escape(&summary.precision)
    )
}

/// The FVU that each prefix of the latents reaches on its own.
fn by_prefix(summary: &Summary) -> String {
    if summary.prefixes.is_empty() {
        return String::new();
    }
    let splits = [("train", summary.train), ("val", summary.val), ("test", summary.test)];
    let splits: Vec<_> = splits.into_iter().filter_map(|(name, q)| Some((name, q?))).collect();
    let head: String = splits.iter().map(|(name, _)| format!("<th>{name}</th>")).collect();
    let mut rows = String::new();
    for (p, end) in summary.prefixes.ends().iter().enumerate() {
        let value = |q: &Quality| q.fvu_by_prefix.values().get(p).map_or("-".into(), |v| number(*v));
        let cells: String = splits.iter().map(|(_, q)| format!("<td>{}</td>", value(q))).collect();
        let _ = write!(rows, "<tr><th scope=\"row\">{}</th>{cells}</tr>", thousands(u64::from(*end)));
    }
    format!(
        "<h3>FVU by the first latents</h3><div class=\"scroll\"><table class=\"figures\"><thead><tr><th>latents</th>{head}</tr>\
         </thead><tbody>{rows}</tbody></table></div>\n"
    )
}

fn charts(page: &Page) -> String {
    let mut out = String::new();
    if !page.curves.is_empty() {
        let curves: String = page.curves.iter().map(chart::curves).collect();
        let _ = writeln!(
            out,
            "<section id=\"curves\"><h2>Curves</h2><div class=\"charts\">{curves}</div></section>"
        );
    }
    let histograms: String = page.histograms.iter().map(chart::histogram).collect();
    let _ = writeln!(
        out,
        "<section><h2>Firing rates and activations</h2><div class=\"charts\">{histograms}</div></section>"
    );
    out
}

fn dead(page: &Page) -> String {
    let f = &page.features;
    let n = f.width - f.alive;
    let mut text = format!(
        "{} of {} latents ({} %) are active on none of {}.",
        thousands(n as u64),
        thousands(f.width as u64),
        number(100.0 * n as f64 / f.width.max(1) as f64),
        escape(&page.rows)
    );
    if let Some(advice) = page.summary.as_ref().and_then(Summary::dead_warning) {
        let _ = write!(text, " On the training split, {}.", escape(&advice));
    }
    if n > 0 {
        let first: Vec<String> = f
            .latents
            .iter()
            .filter(|l| l.active_rows == 0)
            .take(1000)
            .map(|l| l.latent.to_string())
            .collect();
        let more = if n > first.len() { ", ..." } else { "" };
        let _ = write!(
            text,
            "</p><details><summary>their numbers</summary><p class=\"numbers\">{}{more}</p></details><p>",
            first.join(", ")
        );
    }
    format!("<section><h2>Dead latents</h2><p>{text}</p></section>\n").replace("<p></p>", "")
}

fn settings(page: &Page) -> String {
    let rows: String = page
        .options
        .iter()
        .map(|(name, value)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value))
        })
        .collect();
    format!(
        "<section id=\"settings\"><h2>Settings</h2><details open><summary>all options of the run, resolved</summary>\
         <table class=\"settings\"><tbody>{rows}</tbody></table></details></section>\n"
    )
}

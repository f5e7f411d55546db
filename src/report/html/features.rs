//! The tables of labels and latents: plain rows that read and print without the script, which sorts and searches them.
//! A blank follows each cell and each item of a list, so that a search does not find words across two of them.

use super::{Page, Shown, escape};
use crate::analysis::features::{Feature, Finding, Q_LIMIT};
use crate::text::{number, thousands};
use std::fmt::Write;

/// A head cell that sorts by its column; `first` is the direction of the first click.
fn head(name: &str, first: &str) -> String {
    format!("<th scope=\"col\" data-first=\"{first}\"><button type=\"button\">{name}</button></th>")
}

/// A cell with the value that it is sorted by.
fn cell(name: &str, sort: f64, shown: &str) -> String {
    let sort = if sort.is_finite() { sort.to_string() } else { String::new() };
    format!("<td data-l=\"{name}\" data-v=\"{sort}\" class=\"n\">{shown}</td> ")
}

/// Search box and, where heads are hidden, a choice of the order.
fn controls(table: &str, what: &str, columns: &[(&str, &str)]) -> String {
    let options: String = columns
        .iter()
        .enumerate()
        .map(|(at, (name, _))| format!("<option value=\"{at}\">{name}</option>"))
        .collect();
    format!(
        "<div class=\"controls\"><label>search <input type=\"search\" data-for=\"{table}\" placeholder=\"{what}\" \
         autocomplete=\"off\"></label><label class=\"order\">sort by <select data-for=\"{table}\">\
         <option value=\"\"></option>{options}</select></label><output data-for=\"{table}\"></output></div>"
    )
}

fn open(table: &str, what: &str, columns: &[(&str, &str)]) -> String {
    let heads: String = columns.iter().map(|(name, first)| head(name, first)).collect();
    format!(
        "{}<div class=\"scroll\"><table class=\"cards sortable\" id=\"{table}\"><thead><tr>{heads}</tr></thead><tbody>\n",
        controls(table, what, columns)
    )
}

/// For each label the latent that predicts it best; nothing without labels.
pub(super) fn labels(page: &Page) -> String {
    let Some(labels) = &page.features.labels else { return String::new() };
    let mut text = format!(
        "<section id=\"by-label\"><h2>Labels</h2><p>{} labels of <code>{}</code>, {} tests of a latent with a label, {} with q &lt; \
         {Q_LIMIT} in {} latents. Thresholds are chosen on one half of the ids; all figures here are those of the other \
         half; q is Benjamini and Hochberg's over all tests.</p>\n",
        labels.labels.len(),
        escape(&labels.path),
        thousands(labels.n_tests as u64),
        thousands(labels.n_found as u64),
        thousands(labels.n_latents_found as u64)
    );
    for unknown in &labels.told.unknown_cells {
        let _ = writeln!(text, "<p class=\"note\">{}</p>", escape(&unknown.text()));
    }
    if !labels.told.passed_over.is_empty() {
        let items: String = labels
            .told
            .passed_over
            .iter()
            .map(|p| format!("<li><code>{}</code>: {}</li> ", escape(&p.column), escape(&p.why)))
            .collect();
        let _ = writeln!(text, "<details><summary>columns skipped</summary><ul>{items}</ul></details>");
    }
    let columns = [
        ("label", "up"),
        ("rows", "down"),
        ("latent", "up"),
        ("precision", "down"),
        ("recall", "down"),
        ("F1", "down"),
        ("AUROC", "down"),
        ("q", "up"),
    ];
    text += &open("labels", "a label", &columns);
    for (latent, best) in &page.by_label {
        let rows = labels
            .labels
            .iter()
            .find(|l| l.column_name == best.column && l.value == best.label)
            .map_or(0, |l| l.rows[0] + l.rows[1]);
        let _ = writeln!(
            text,
            "<tr>{}{}{}{}</tr>",
            label_cell(best),
            cell("rows", rows as f64, &thousands(rows)),
            cell("latent", f64::from(*latent), &link(page, *latent)),
            figures(best, true)
        );
    }
    text + "</tbody></table></div></section>\n"
}

fn label_cell(best: &Finding) -> String {
    let (column, label) = (escape(&best.column), escape(&best.label));
    format!(
        "<td data-l=\"label\" data-v=\"{column}: {label}\"><span class=\"column\">{column}:</span> {label}</td> "
    )
}

fn figures(best: &Finding, all: bool) -> String {
    let shares = if all {
        format!(
            "{}{}",
            cell("precision", best.precision, &number(best.precision)),
            cell("recall", best.recall, &number(best.recall))
        )
    } else {
        String::new()
    };
    let weak =
        if best.q < Q_LIMIT { "" } else { "<span class=\"weak\" title=\"not below the limit\"> n.s.</span>" };
    format!(
        "{shares}{}{}{}",
        cell("F1", best.f1, &number(best.f1)),
        cell("AUROC", best.auroc, &number(best.auroc)),
        cell("q", best.q, &format!("{}{weak}", number(best.q)))
    )
}

/// The number of a latent, linked where it is in the table.
fn link(page: &Page, latent: u32) -> String {
    match page.linked.contains(&latent) {
        true => format!("<a href=\"#latent-{latent}\">{latent}</a>"),
        false => latent.to_string(),
    }
}

/// The latents that are shown.
pub(super) fn table(page: &Page) -> String {
    let with_labels = page.features.labels.is_some();
    let mut columns = vec![("latent", "up"), ("fires on %", "down"), ("mean", "down"), ("max", "down")];
    if with_labels {
        columns.extend([("label", "up"), ("F1", "down"), ("AUROC", "down"), ("q", "up")]);
    }
    columns.extend([("ids that fire it most", "up"), ("near", "down")]);
    let (order, labels) = match with_labels {
        true => (
            "those with the highest F1 first, then the largest activation",
            "; &#10003; is an id that has the latent's label; others show what they have in its column",
        ),
        false => ("the largest activation first", ""),
    };
    let mut text = format!(
        "<section id=\"by-latent\"><h2>Features</h2><p>{} of the {} latents that fire, {order}. An \
         activation stands behind each id{labels}; mean is over the rows that a latent is active on; near are the latents with the nearest decoder rows, by \
         cosine.</p>\n",
        thousands(page.shown.len() as u64),
        thousands(page.features.alive as u64)
    );
    text += &open("features", "an id, a label, a latent", &columns);
    for shown in &page.shown {
        text += &row(page, shown, with_labels);
    }
    text + "</tbody></table></div></section>\n"
}

fn row(page: &Page, shown: &Shown, with_labels: bool) -> String {
    let f = page.feature(shown);
    let rate = 100.0 * f.firing_rate;
    let (mean, max) = (f.mean_activation.unwrap_or(0.0), f64::from(f.max_activation.unwrap_or(0.0)));
    let mut text = format!(
        "<tr id=\"latent-{0}\">{1}{2}{3}{4}",
        f.latent,
        cell("latent", f64::from(f.latent), &format!("<b>{}</b>", f.latent)),
        cell("fires on %", rate, &number(rate)),
        cell("mean", mean, &number(mean)),
        cell("max", max, &number(max))
    );
    match &f.best {
        Some(best) => {
            let _ = write!(text, "{}{}", label_cell(best), figures(best, false));
        }
        None if with_labels => text += &"<td class=\"none\" data-v=\"\"></td> ".repeat(4),
        None => {}
    }
    let _ = write!(text, "{}{}", ids(f, shown), near(page, f));
    text + "</tr>\n"
}

fn ids(f: &Feature, shown: &Shown) -> String {
    let items: String = f
        .top
        .iter()
        .enumerate()
        .map(|(i, top)| {
            let label = match shown.labels_of_ids.get(i) {
                Some(label) if label.borne => "<span class=\"of\">&#10003;</span>".to_owned(),
                Some(label) if !label.text.is_empty() => {
                    format!("<span class=\"of\">{}</span>", escape(&label.text))
                }
                _ => String::new(),
            };
            let activation = number(f64::from(top.activation));
            format!("<li>{} <span class=\"a\">{activation}</span> {label}</li> ", escape(&top.id))
        })
        .collect();
    let first = f.top.first().map_or(String::new(), |top| escape(&top.id));
    format!("<td data-l=\"ids\" data-v=\"{first}\" class=\"ids\"><ul>{items}</ul></td> ")
}

fn near(page: &Page, f: &Feature) -> String {
    let items: Vec<String> = f
        .neighbours
        .iter()
        .map(|n| format!("<span>{} <i class=\"a\">{:.2}</i></span> ", link(page, n.latent), n.cosine))
        .collect();
    let cosine = f.neighbours.first().map_or(f64::NAN, |n| f64::from(n.cosine));
    let sort = if cosine.is_finite() { cosine.to_string() } else { String::new() };
    format!("<td data-l=\"near\" data-v=\"{sort}\" class=\"near\">{}</td> ", items.concat())
}

//! Latents as points: the share of one group's rows that activate each against the share of another's, a panel for
//! every two groups.

use super::{Area, COLOURS, FAINT_GRID, Fallible, GRID, INK, render, size_of, text};
use crate::error::Result;
use crate::report::scale::Scale;
use crate::report::views::{Dot, Panel};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Panels of one picture: more are too small to read.
const MOST_PANELS: usize = 9;
const TITLE: &str = "Share of rows that activate each latent";
const NAMES: [&str; 4] = ["active in x alone", "active in y alone", "active in both", "in neither"];

/// The plot as the bytes of a PNG file; of more than nine panels the first nine. `threshold` is drawn as lines.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn render_panels(panels: &[Panel], threshold: f64) -> Result<Vec<u8>> {
    render(TITLE, |root| draw(root, panels, threshold))
}

fn draw(root: &Area, panels: &[Panel], threshold: f64) -> Fallible {
    root.fill(&WHITE)?;
    let shown = &panels[..panels.len().min(MOST_PANELS)];
    let (head, body) = root.split_vertically(190);
    let middle = Pos::new(HPos::Center, VPos::Center);
    let title = match panels.len() {
        n if n > MOST_PANELS => format!("{TITLE} (the first {MOST_PANELS} of {n} pairs)"),
        _ => TITLE.to_owned(),
    };
    head.draw_text(&title, &text(60).pos(middle), (size_of(&head).0 / 2, 66))?;
    draw_legend(&head)?;
    let columns = (1..=3).find(|c| c * c >= shown.len()).unwrap_or(3);
    let lines = shown.len().div_ceil(columns).max(1);
    for (area, panel) in body.split_evenly((lines, columns)).iter().zip(shown) {
        draw_panel(area, panel, threshold, if columns == 1 { 1.0 } else { 0.7 })?;
    }
    Ok(())
}

/// Colour by where the latent is active.
fn kind(dot: &Dot) -> usize {
    match dot.active {
        (true, false) => 0,
        (false, true) => 1,
        (true, true) => 2,
        (false, false) => 3,
    }
}

fn colour(kind: usize) -> RGBColor {
    if kind == 3 { RGBColor(170, 170, 170) } else { COLOURS[kind] }
}

fn draw_legend(head: &Area) -> Fallible {
    let style = text(40).pos(Pos::new(HPos::Left, VPos::Center));
    let mut widths = vec![];
    for name in NAMES {
        widths.push(head.estimate_text_size(name, &style)?.0 as i32 + 130);
    }
    let mut left = (size_of(head).0 - widths.iter().sum::<i32>()) / 2;
    for (i, (name, width)) in NAMES.iter().zip(&widths).enumerate() {
        head.draw(&Circle::new((left + 20, 144), 12, colour(i).filled()))?;
        head.draw_text(name, &style, (left + 50, 144))?;
        left += width;
    }
    Ok(())
}

/// `zoom` is the size of text beside that of a picture with one panel.
fn draw_panel(area: &Area, panel: &Panel, threshold: f64, zoom: f64) -> Fallible {
    let sized = |size: u32| text((f64::from(size) * zoom) as u32);
    let axis = Scale::values(&[panel.least, 1.0]);
    let caption = format!("{} and {}: {}", panel.names.0, panel.names.1, panel.caption);
    let (top, body) = area.split_vertically((70.0 * zoom) as u32);
    let centre = Pos::new(HPos::Center, VPos::Center);
    top.draw_text(&caption, &sized(44).pos(centre), (size_of(&top).0 / 2, size_of(&top).1 / 2))?;
    let mut chart = ChartBuilder::on(&body)
        .margin_right(50)
        .margin_left(20)
        .margin_bottom(20)
        .x_label_area_size((130.0 * zoom) as u32)
        .y_label_area_size((250.0 * zoom) as u32)
        .build_cartesian_2d(axis.clone(), axis.clone())?;
    chart
        .configure_mesh()
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(FAINT_GRID.stroke_width(2))
        .axis_style(INK.stroke_width(3))
        .x_desc(format!("rows of {}, log scale", panel.names.0))
        .y_desc(format!("rows of {}, log scale", panel.names.1))
        .x_label_formatter(&|v| axis.label(*v))
        .y_label_formatter(&|v| axis.label(*v))
        .label_style(sized(38))
        .axis_desc_style(sized(44))
        .draw()?;
    let plane = chart.plotting_area();
    let place = |share: f64| axis.place(share.max(panel.least));
    if threshold > 0.0 {
        let line = place(threshold);
        for ends in [[(line, axis.low), (line, axis.high)], [(axis.low, line), (axis.high, line)]] {
            plane.draw(&PathElement::new(ends, INK.mix(0.6).stroke_width(3)))?;
        }
    }
    let diagonal = [(axis.low, axis.low), (axis.high, axis.high)];
    plane.draw(&PathElement::new(diagonal, GRID.stroke_width(3)))?;
    let seen = |dot: &&Dot| dot.shares.0 > 0.0 || dot.shares.1 > 0.0;
    // The many that are active in neither lie below the others.
    for k in [3, 2, 1, 0] {
        for dot in panel.dots.iter().filter(seen).filter(|dot| kind(dot) == k) {
            let at = (place(dot.shares.0), place(dot.shares.1));
            let radius = (if k == 3 { 6.0 } else { 10.0 } * zoom) as i32;
            plane.draw(&Circle::new(at, radius, colour(k).filled()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_panel_many_and_latents_at_the_edges_are_drawn() {
        let dot = |a: f64, b: f64| Dot { shares: (a, b), active: (a > 0.1, b > 0.1) };
        let panel = Panel {
            names: ("α".into(), "a name of some length, with a comma".into()),
            caption: "Jaccard 50.0 %".into(),
            least: 0.001,
            dots: vec![dot(0.0, 0.0), dot(1.0, 0.0), dot(0.0, 1.0), dot(0.5, 0.5)],
        };
        for n in [0, 1, 2, 9, 12] {
            let picture = render_panels(&vec![panel.clone(); n], 0.1);
            assert!(picture.is_ok_and(|bytes| bytes.starts_with(b"\x89PNG")), "{n} panels");
        }
        assert!(render_panels(&[Panel { least: 0.5, ..panel }], 0.0).is_ok(), "a group of one row");
    }
}

//! Training curves as PNG: one quantity over the steps, a curve a split, the annealing phase shaded.
//!
//! Drawn at twice the size and averaged down, because plotters' thick lines have hard edges.

pub mod frontier;
pub mod groups;
pub mod strips;

use std::sync::OnceLock;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::scale::Scale;
use super::views::{Curve, CurvePlot};
use crate::error::{Error, Result};
use crate::run::PLOTS;
use crate::text::{number, thousands};

/// Size of the picture in pixels.
pub const WIDTH: u32 = 1600;
/// Size of the picture in pixels.
pub const HEIGHT: u32 = 1000;
/// Supersampling factor: every length below is in pixels of the large picture.
const SCALE: u32 = 2;
// Drawing takes the large picture, the small one, and the file made of it.
const _: () = assert!(PLOTS == 3 * (WIDTH * HEIGHT * (SCALE * SCALE + 1)) as u64 + (WIDTH * HEIGHT) as u64);
/// At most this many markers per curve: enough to tell the curves apart, few enough to see the line.
const MARKERS: usize = 14;

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(216, 216, 216);
const FAINT_GRID: RGBColor = RGBColor(238, 238, 238);
const SHADE: RGBColor = RGBColor(250, 240, 205);
/// Okabe and Ito's palette, told apart with any kind of colour vision.
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Fallible = std::result::Result<(), Box<dyn std::error::Error>>;

/// The plot as the bytes of a PNG file of [`WIDTH`] x [`HEIGHT`] pixels.
pub fn render_png(plot: &CurvePlot) -> Result<Vec<u8>> {
    render(&plot.title, |root| draw(root, plot))
}

/// A picture that `draw` makes, as the bytes of a PNG file.
fn render(title: &str, draw: impl FnOnce(&Area) -> Fallible) -> Result<Vec<u8>> {
    let failed = |e: Box<dyn std::error::Error>| {
        Error::Failed(format!("cannot draw the plot \"{title}\": {e}; the numbers are in metrics.csv"))
    };
    register_font().map_err(failed)?;
    let size = (WIDTH * SCALE, HEIGHT * SCALE);
    let mut large = vec![255u8; (size.0 * size.1 * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut large, size).into_drawing_area();
        draw(&root).map_err(failed)?;
        root.present().map_err(|e| failed(e.into()))?;
    }
    encode(&averaged_down(&large)).map_err(|e| failed(e.into()))
}

/// The embedded font, registered once: a machine without fonts draws the same picture.
fn register_font() -> Fallible {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let font = include_bytes!("font/DejaVuSans-subset.ttf");
    let ok = REGISTERED
        .get_or_init(|| plotters::style::register_font("sans-serif", FontStyle::Normal, font).is_ok());
    if *ok { Ok(()) } else { Err("the embedded font is damaged".into()) }
}

fn draw(root: &Area, plot: &CurvePlot) -> Fallible {
    root.fill(&WHITE)?;
    let curves: Vec<Curve> = plot.curves.iter().map(finite).collect();
    let points = || curves.iter().flat_map(|c| c.points.iter());
    let values: Vec<f64> = points().map(|p| p.1).collect();
    let last = points().map(|p| p.0).fold(0.0, f64::max);
    // With no point yet the phase itself is the only thing that says how long the run is.
    let annealed = plot.annealed_until.filter(|t| *t > 0).map(|t| t as f64);
    let x = Scale::steps(if values.is_empty() { annealed.unwrap_or(1.0) } else { last });
    let y = Scale::values(&values.iter().chain(plot.must_show).copied().collect::<Vec<f64>>());

    let (head, body) = root.split_vertically(170);
    let title = text(60).pos(Pos::new(HPos::Center, VPos::Center));
    head.draw_text(&plot.title, &title, (size_of(&head).0 / 2, 56))?;
    draw_legend(&head, &curves, annealed)?;

    let y_label = match y.log {
        true => format!("{}, log scale", plot.y_label),
        false => plot.y_label.clone(),
    };
    let mut widest = 100;
    for tick in &y.ticks {
        widest = widest.max(body.estimate_text_size(&y.label(*tick), &text(40))?.0);
    }
    let mut chart = ChartBuilder::on(&body)
        .margin_right(60)
        .margin_left(36)
        .margin_bottom(20)
        .x_label_area_size(130)
        .y_label_area_size(widest + 120)
        .build_cartesian_2d(x.clone(), y.clone())?;
    if let Some(until) = annealed {
        let corners = [(x.low, y.low), (until.min(x.high), y.high)];
        chart.draw_series([Rectangle::new(corners, SHADE.filled())])?;
    }
    chart
        .configure_mesh()
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(FAINT_GRID.stroke_width(2))
        .axis_style(INK.stroke_width(3))
        .x_desc("optimizer step")
        .y_desc(y_label)
        .x_label_formatter(&|v| x.label(*v))
        .y_label_formatter(&|v| y.label(*v))
        .set_all_tick_mark_size(16)
        .y_label_offset(6)
        .label_style(text(40))
        .axis_desc_style(text(46))
        .draw()?;
    let plane = chart.plotting_area();
    if let Some(until) = annealed {
        draw_annealing_label(root, plane.map_coordinate(&(x.low, y.high)), {
            plane.map_coordinate(&(until.min(x.high), y.high)).0
        })?;
    }
    if values.is_empty() {
        let middle = plane.map_coordinate(&((x.low + x.high) / 2.0, (y.low + y.high) / 2.0));
        let style = text(72).pos(Pos::new(HPos::Center, VPos::Center));
        root.draw_text("no data", &style, middle)?;
    }
    for (i, curve) in curves.iter().enumerate() {
        let pixels: Vec<(i32, i32)> =
            curve.points.iter().map(|p| plane.map_coordinate(&(p.0, y.place(p.1)))).collect();
        draw_line(root, i, &pixels)?;
        for at in some_of(&pixels) {
            draw_marker(root, i, at)?;
        }
    }
    Ok(())
}

fn finite(curve: &Curve) -> Curve {
    let keep = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    Curve { name: curve.name, points: curve.points.iter().filter(keep).copied().collect() }
}

/// Evenly spaced points, the last one always among them (its value is in the legend).
fn some_of(pixels: &[(i32, i32)]) -> impl Iterator<Item = (i32, i32)> + '_ {
    let stride = pixels.len().div_ceil(MARKERS).max(1);
    pixels.iter().rev().step_by(stride).copied()
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn size_of(area: &Area) -> (i32, i32) {
    let (w, h) = area.dim_in_pixel();
    (w as i32, h as i32)
}

/// Name and final value of every curve, in one row under the title, where it hides no data.
fn draw_legend(head: &Area, curves: &[Curve], annealed: Option<f64>) -> Fallible {
    const SAMPLE: i32 = 130;
    const GAP: i32 = 70;
    let style = text(42).pos(Pos::new(HPos::Left, VPos::Center));
    let mut entries: Vec<String> = curves
        .iter()
        .map(|c| match c.points.last() {
            Some((_, value)) => format!("{}: {} at the end", c.name, number(*value)),
            None => format!("{}: no data", c.name),
        })
        .collect();
    if let Some(until) = annealed {
        entries.push(format!("annealing: steps 0 to {}", thousands(until as u64)));
    }
    let mut widths = Vec::with_capacity(entries.len());
    for entry in &entries {
        widths.push(head.estimate_text_size(entry, &style)?.0 as i32);
    }
    let total: i32 = widths.iter().map(|w| w + SAMPLE + GAP).sum::<i32>() - GAP;
    let mut left = (size_of(head).0 - total) / 2;
    let middle = 134;
    for (i, (entry, width)) in entries.iter().zip(&widths).enumerate() {
        let (from, to) = (left, left + SAMPLE - 24);
        if i < curves.len() {
            draw_line(head, i, &[(from, middle), (to, middle)])?;
            draw_marker(head, i, ((from + to) / 2, middle))?;
        } else {
            let swatch = [(from + 30, middle - 20), (to, middle + 20)];
            head.draw(&Rectangle::new(swatch, SHADE.filled()))?;
            head.draw(&Rectangle::new(swatch, GRID.stroke_width(2)))?;
        }
        head.draw_text(entry, &style, (left + SAMPLE, middle))?;
        left += SAMPLE + width + GAP;
    }
    Ok(())
}

/// The word inside the shaded phase, if the phase is wide enough for it (the legend names it anyway).
fn draw_annealing_label(root: &Area, top_left: (i32, i32), right: i32) -> Fallible {
    let style = text(40).pos(Pos::new(HPos::Center, VPos::Center));
    let width = root.estimate_text_size("annealing", &style)?.0 as i32;
    if width + 20 < right - top_left.0 {
        let middle = ((top_left.0 + right) / 2, top_left.1 + 36);
        root.draw_text("annealing", &style, middle)?;
    }
    Ok(())
}

/// Curve `index` through `pixels`, solid or dashed.
fn draw_line(area: &Area, index: usize, pixels: &[(i32, i32)]) -> Fallible {
    const DASHES: [Option<(i32, i32)>; 4] = [None, Some((28, 16)), Some((8, 12)), Some((44, 12))];
    let style = COLOURS[index % COLOURS.len()].stroke_width(5);
    match DASHES[index % DASHES.len()] {
        None => area.draw(&PathElement::new(pixels.to_vec(), style))?,
        Some((dash, gap)) => {
            for piece in dashes(pixels, f64::from(dash), f64::from(gap)) {
                area.draw(&PathElement::new(piece, style))?;
            }
        }
    }
    Ok(())
}

/// Cuts a polyline into dashes whose rhythm goes on across its corners, so that a dense curve, with
/// many points a dash, is dashed as well.
fn dashes(pixels: &[(i32, i32)], dash: f64, gap: f64) -> Vec<Vec<(i32, i32)>> {
    let mut pieces = Vec::new();
    let mut current: Vec<(i32, i32)> = pixels.first().copied().into_iter().collect();
    let (mut inked, mut left) = (true, dash);
    for pair in pixels.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
        let length = dx.hypot(dy);
        let mut done = 0.0;
        while length - done > left {
            done += left;
            let at = done / length;
            let here = (from.0 + (dx * at).round() as i32, from.1 + (dy * at).round() as i32);
            if inked {
                current.push(here);
                pieces.push(std::mem::take(&mut current));
            } else {
                current = vec![here];
            }
            inked = !inked;
            left = if inked { dash } else { gap };
        }
        left -= length - done;
        if inked {
            current.push(to);
        }
    }
    if inked && current.len() > 1 {
        pieces.push(current);
    }
    pieces
}

fn draw_marker(area: &Area, index: usize, at: (i32, i32)) -> Fallible {
    let colour = COLOURS[index % COLOURS.len()];
    let (x, y) = at;
    match index % 4 {
        0 => area.draw(&Circle::new(at, 11, colour.filled()))?,
        1 => area.draw(&Rectangle::new([(x - 11, y - 11), (x + 11, y + 11)], colour.filled()))?,
        2 => {
            let corners = vec![(x, y - 17), (x + 15, y + 11), (x - 15, y + 11)];
            area.draw(&Polygon::new(corners, colour.filled()))?;
        }
        _ => {
            let corners = vec![(x, y - 17), (x + 17, y), (x, y + 17), (x - 17, y)];
            area.draw(&Polygon::new(corners, colour.filled()))?;
        }
    }
    Ok(())
}

/// The mean of every `SCALE` x `SCALE` square of pixels.
fn averaged_down(large: &[u8]) -> Vec<u8> {
    let (scale, stride) = (SCALE as usize, (WIDTH * SCALE * 3) as usize);
    let mut small = Vec::with_capacity((WIDTH * HEIGHT * 3) as usize);
    for y in 0..HEIGHT as usize {
        for x in 0..WIDTH as usize {
            for channel in 0..3 {
                let mut sum = 0u32;
                for row in 0..scale {
                    for column in 0..scale {
                        let at = (y * scale + row) * stride + (x * scale + column) * 3 + channel;
                        sum += u32::from(large[at]);
                    }
                }
                small.push((sum / (SCALE * SCALE)) as u8);
            }
        }
    }
    small
}

fn encode(rgb: &[u8]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "plots_tests.rs"]
mod tests;

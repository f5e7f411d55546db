//! Latents along the rows of an id: a strip each, all on one axis of positions.

use super::{Area, COLOURS, Fallible, GRID, INK, render, size_of, text};
use crate::error::Result;
use crate::report::scale::Scale;
use crate::report::views::{Strip, Strips};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Strips of one picture: more are too flat to read.
const MOST_STRIPS: usize = 16;
/// Pixels of the large picture beside the strips, and below the last.
const LEFT: i32 = 170;
const RIGHT: i32 = 60;
const BELOW: i32 = 170;
/// Pixels that make two of the picture.
const THIN: i32 = 4;

/// The plot as the bytes of a PNG file; of more than sixteen latents the first sixteen. Each strip has an axis of its own,
/// from 0 to its largest activation.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn render_strips(plot: &Strips) -> Result<Vec<u8>> {
    render(&plot.title, |root| draw(root, plot))
}

fn draw(root: &Area, plot: &Strips) -> Fallible {
    root.fill(&WHITE)?;
    let shown = &plot.strips[..plot.strips.len().min(MOST_STRIPS)];
    let (head, body) = root.split_vertically(150);
    let title = match plot.strips.len() {
        n if n > MOST_STRIPS => format!("{} (the first {MOST_STRIPS} of {n} latents)", plot.title),
        _ => plot.title.clone(),
    };
    let centre = Pos::new(HPos::Center, VPos::Center);
    head.draw_text(&title, &text(60).pos(centre), (size_of(&head).0 / 2, 76))?;
    let (width, height) = size_of(&body);
    let (strips, axis) = body.split_vertically((height - BELOW) as u32);
    let (first, last) = match (plot.positions.first(), plot.positions.last()) {
        (Some(&first), Some(&last)) => (f64::from(first) - 0.5, f64::from(last) + 0.5),
        _ => (0.5, 1.5),
    };
    let x = |position: f64| {
        let at = (position - first) / (last - first);
        LEFT + (at * f64::from(width - LEFT - RIGHT)).round() as i32
    };
    let all = strips.split_evenly((shown.len().max(1), 1));
    for (i, (area, strip)) in all.iter().zip(shown).enumerate() {
        draw_strip(area, strip, &plot.positions, &x, COLOURS[i % COLOURS.len()])?;
    }
    let style = text(40).pos(Pos::new(HPos::Center, VPos::Top));
    for tick in Scale::steps(last).ticks {
        // Sequences are counted from 1.
        let tick = if tick == 0.0 { 1.0 } else { tick };
        if (first..=last).contains(&tick) {
            axis.draw(&PathElement::new([(x(tick), 0), (x(tick), 16)], INK.stroke_width(3)))?;
            axis.draw_text(&format!("{tick}"), &style, (x(tick), 26))?;
        }
    }
    axis.draw(&PathElement::new([(LEFT, 0), (width - RIGHT, 0)], INK.stroke_width(3)))?;
    axis.draw_text("position", &text(46).pos(centre), ((LEFT + width - RIGHT) / 2, 120))?;
    Ok(())
}

/// A bar per row, from 0.
fn draw_strip(
    area: &Area,
    strip: &Strip,
    positions: &[u32],
    x: &impl Fn(f64) -> i32,
    colour: RGBColor,
) -> Fallible {
    let (width, height) = size_of(area);
    let finite = || strip.activations.iter().copied().filter(|value| value.is_finite());
    let (low, high) = (finite().fold(0f32, f32::min), finite().fold(0f32, f32::max));
    let range = f64::from((high - low).max(f32::MIN_POSITIVE));
    // The name stands above the bars, small where strips are flat.
    let size = (height / 4).clamp(24, 40);
    let (top, bottom) = (size + 14, height - 6);
    let y = |value: f64| bottom - ((value - f64::from(low)) / range * f64::from(bottom - top)).round() as i32;
    let label = |at: Pos| text(size as u32).pos(at);
    area.draw_text(&strip.name, &label(Pos::new(HPos::Left, VPos::Bottom)), (LEFT, top - 2))?;
    for value in [low, high].into_iter().filter(|value| *value != 0.0) {
        let style = label(Pos::new(HPos::Right, VPos::Center));
        area.draw_text(&crate::text::number(f64::from(value)), &style, (LEFT - 16, y(f64::from(value))))?;
    }
    for (&position, &value) in positions.iter().zip(&strip.activations) {
        if value == 0.0 || !value.is_finite() {
            continue;
        }
        let position = f64::from(position);
        let (left, right) = (x(position - 0.5), x(position + 0.5));
        // Bars of neighbours touch; of long sequences they are as wide as can be seen.
        let corners = [(left, y(0.0)), (right.max(left + THIN), y(f64::from(value)))];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
    }
    area.draw(&PathElement::new([(LEFT, y(0.0)), (width - RIGHT, y(0.0))], GRID.stroke_width(2)))?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{HEIGHT, WIDTH};
    use super::*;

    /// Pixels of the decoded picture that are `colour`, as (x, y).
    fn pixels(plot: &Strips, colour: RGBColor) -> Vec<(usize, usize)> {
        let bytes = render_strips(plot).unwrap();
        if let Ok(folder) = std::env::var("SAE_KEEP_PLOTS") {
            std::fs::write(format!("{folder}/strips_{}.png", plot.strips.len()), &bytes).unwrap();
        }
        let mut reader = png::Decoder::new(bytes.as_slice()).read_info().unwrap();
        let mut data = vec![0; reader.output_buffer_size()];
        let info = reader.next_frame(&mut data).unwrap();
        assert_eq!((info.width, info.height), (WIDTH, HEIGHT));
        let wanted = [colour.0, colour.1, colour.2];
        let found = data.chunks_exact(3).enumerate().filter(|(_, pixel)| *pixel == wanted);
        found.map(|(i, _)| (i % WIDTH as usize, i / WIDTH as usize)).collect()
    }

    fn strips(activations: &[&[f32]]) -> Strips {
        let strip = |(i, values): (usize, &&[f32])| Strip {
            name: format!("latent {i}"),
            activations: values.to_vec(),
        };
        Strips {
            title: "P60775".into(),
            positions: (1..=activations[0].len() as u32).collect(),
            strips: activations.iter().enumerate().map(strip).collect(),
        }
    }

    #[test]
    fn bars_stand_where_a_latent_is_active_and_are_as_high_as_its_activation() {
        let mut values = vec![0f32; 100];
        (values[24], values[74]) = (1.0, 0.5);
        let found = pixels(&strips(&[&values]), COLOURS[0]);
        let plane = (WIDTH as usize) - 115;
        let height = |from: usize, to: usize| {
            let inside = found.iter().filter(|(x, _)| (from..to).contains(x));
            let rows: std::collections::BTreeSet<usize> = inside.map(|(_, y)| *y).collect();
            rows.len()
        };
        // Positions 25 and 75 of 100 are about a quarter and three quarters of the way.
        let (left, right) =
            (height(85 + plane / 5, 85 + plane * 3 / 10), height(85 + plane * 7 / 10, 85 + plane * 4 / 5));
        assert!(left > 500 && left.abs_diff(2 * right) <= 4, "{left} {right}");
        assert_eq!(height(0, WIDTH as usize), left, "nothing else is drawn in that colour");
        let x: Vec<usize> = found.iter().map(|(x, _)| *x).collect();
        let wide = x.iter().filter(|x| **x < 800).max().unwrap() - x.iter().min().unwrap() + 1;
        assert!((13..=16).contains(&wide), "a hundredth of the plane: {wide}");
    }

    #[test]
    fn long_sequences_signs_and_latents_that_are_never_active_are_drawn() {
        let mut long = vec![0f32; 30_000];
        long[15_000] = 2.0;
        assert!(!pixels(&strips(&[&long]), COLOURS[0]).is_empty(), "one row of many");
        let signed = pixels(&strips(&[&[-1.0, 1.0], &[0.0, 0.0]]), COLOURS[0]);
        assert!(signed.len() > 10_000, "{}", signed.len());
        let many: Vec<&[f32]> = vec![&[1.0, 0.0, 3.0]; 20];
        assert!(pixels(&strips(&many), COLOURS[3]).len() > 1000);
        assert!(render_strips(&strips(&[&[f32::NAN]])).is_ok());
    }
}

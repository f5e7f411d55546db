//! Runs as points: validation FVU against active latents per row, with the frontier through the best of them.

use super::{Area, COLOURS, FAINT_GRID, Fallible, GRID, INK, draw_line, render, size_of, text};
use crate::error::Result;
use crate::report::scale::Scale;
use crate::report::views::{Frontier, Point};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// The plot as the bytes of a PNG file.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn render_frontier(plot: &Frontier) -> Result<Vec<u8>> {
    render(TITLE, |root| draw(root, plot))
}

const TITLE: &str = "Reconstruction error against sparsity";

/// The runs that no other beats in both figures, by rising L0.
fn best(points: &[&Point]) -> Vec<(f64, f64)> {
    let mut order: Vec<(f64, f64)> = points.iter().map(|p| (p.l0, p.fvu)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut kept: Vec<(f64, f64)> = vec![];
    for point in order {
        if kept.last().is_none_or(|last| point.1 < last.1) {
            kept.push(point);
        }
    }
    kept
}

fn draw(root: &Area, plot: &Frontier) -> Fallible {
    root.fill(&WHITE)?;
    let points: Vec<&Point> = plot.points.iter().filter(|p| p.l0.is_finite() && p.fvu.is_finite()).collect();
    let x = Scale::values(&points.iter().map(|p| p.l0).collect::<Vec<_>>());
    let y = Scale::values(&points.iter().map(|p| p.fvu).collect::<Vec<_>>());
    let (head, body) = root.split_vertically(130);
    let title = text(60).pos(Pos::new(HPos::Center, VPos::Center));
    head.draw_text(TITLE, &title, (size_of(&head).0 / 2, 70))?;
    let mut widest = 100;
    for tick in &y.ticks {
        widest = widest.max(body.estimate_text_size(&y.label(*tick), &text(40))?.0);
    }
    let log = |scale: &Scale| if scale.log { ", log scale" } else { "" };
    let mut chart = ChartBuilder::on(&body)
        .margin_right(60)
        .margin_left(36)
        .margin_bottom(20)
        .x_label_area_size(130)
        .y_label_area_size(widest + 120)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .bold_line_style(GRID.stroke_width(2))
        .light_line_style(FAINT_GRID.stroke_width(2))
        .axis_style(INK.stroke_width(3))
        .x_desc(format!("L0 (active latents per row, validation split){}", log(&x)))
        .y_desc(format!("FVU (validation split){}", log(&y)))
        .x_label_formatter(&|v| x.label(*v))
        .y_label_formatter(&|v| y.label(*v))
        .set_all_tick_mark_size(16)
        .y_label_offset(6)
        .label_style(text(40))
        .axis_desc_style(text(46))
        .draw()?;
    let plane = chart.plotting_area();
    let place = |l0: f64, fvu: f64| plane.map_coordinate(&(x.place(l0), y.place(fvu)));
    let line: Vec<(i32, i32)> = best(&points).into_iter().map(|(l0, fvu)| place(l0, fvu)).collect();
    if line.len() > 1 {
        draw_line(root, 0, &line)?;
    }
    let right = size_of(root).0;
    for point in points {
        let at = place(point.l0, point.fvu);
        let style = if point.finished { COLOURS[1].filled() } else { COLOURS[1].stroke_width(5) };
        root.draw(&Circle::new(at, 13, style))?;
        // Names go to the side that has room for them.
        let left = at.0 > right * 2 / 3;
        let pos = Pos::new(if left { HPos::Right } else { HPos::Left }, VPos::Bottom);
        let shift = if left { -18 } else { 18 };
        root.draw_text(&point.name, &text(36).pos(pos), (at.0 + shift, at.1 - 10))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(l0: f64, fvu: f64) -> Point {
        Point { name: "run".into(), l0, fvu, finished: true }
    }

    #[test]
    fn the_frontier_holds_the_runs_that_none_beats_in_both() {
        let all = [point(8.0, 0.5), point(16.0, 0.3), point(16.0, 0.4), point(20.0, 0.35), point(32.0, 0.2)];
        let points: Vec<&Point> = all.iter().collect();
        assert_eq!(best(&points), [(8.0, 0.5), (16.0, 0.3), (32.0, 0.2)]);
        assert!(best(&[]).is_empty());
    }

    #[test]
    fn no_run_one_run_and_figures_that_are_not_finite_are_drawn_too() {
        for points in [vec![], vec![point(3.0, 0.1)], vec![point(f64::NAN, 0.1), point(3.0, 0.0)]] {
            assert!(render_frontier(&Frontier { points }).is_ok());
        }
    }
}

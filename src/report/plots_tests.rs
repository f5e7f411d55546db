//! Tests of `plots.rs`: the picture is decoded and looked at.

#![allow(clippy::unwrap_used)]

use super::*;

fn plot(annealed_until: Option<u64>, curves: Vec<Curve>) -> CurvePlot {
    CurvePlot {
        title: "Relaxed top-k autoencoder: reconstruction error".into(),
        y_label: "MSE (mean over values, data units²)".into(),
        annealed_until,
        must_show: &[],
        curves,
    }
}

fn curve(name: &'static str, points: &[(f64, f64)]) -> Curve {
    let points = points.to_vec();
    Curve { name, points }
}

/// Pixels of the decoded picture, row by row.
fn pixels(plot: &CurvePlot) -> Vec<[u8; 3]> {
    let bytes = render_png(plot).unwrap();
    if let Ok(folder) = std::env::var("SAE_KEEP_PLOTS") {
        let name = std::thread::current().name().unwrap().replace("::", "_");
        std::fs::write(format!("{folder}/{name}.png"), &bytes).unwrap();
    }
    let mut reader = png::Decoder::new(bytes.as_slice()).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!((info.width, info.height), (WIDTH, HEIGHT));
    data.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect()
}

fn count(pixels: &[[u8; 3]], colour: RGBColor) -> usize {
    let wanted = [colour.0, colour.1, colour.2];
    pixels.iter().filter(|p| **p == wanted).count()
}

fn falling(steps: usize, from: f64, to: f64) -> Vec<(f64, f64)> {
    (0..=steps)
        .map(|i| {
            let wobble = 1.0 + 0.03 * ((i * 7919 % 101) as f64 / 50.0 - 1.0);
            let at = i as f64 / steps as f64;
            (i as f64 * 50.0, (to + (from - to) * (-6.0 * at).exp()) * wobble)
        })
        .collect()
}

#[test]
fn each_curve_is_drawn_in_a_colour_of_its_own() {
    let validation: Vec<_> = falling(60, 0.05, 0.012).into_iter().step_by(5).collect();
    let picture = pixels(&plot(
        None,
        vec![
            curve("train", &falling(60, 0.05, 0.01)),
            curve("validation", &validation),
            curve("test", &[(3000.0, 0.0125)]),
        ],
    ));
    for colour in &COLOURS[..3] {
        assert!(count(&picture, *colour) > 100, "{colour:?}");
    }
    assert_eq!(count(&picture, SHADE), 0, "no annealing was asked for");
}

#[test]
fn the_annealing_phase_is_shaded_over_its_part_of_the_axis() {
    let curves = vec![curve("train", &falling(200, 4.0, 0.01)), curve("validation", &falling(20, 4.0, 0.02))];
    let picture = pixels(&plot(Some(2000), curves));
    // 2,000 of 10,000 steps (and 2 % of air) of a plotting area of about 1450 x 840 pixels.
    let shaded = count(&picture, SHADE);
    assert!((150_000..260_000).contains(&shaded), "{shaded}");
    let middle = &picture[(500 * WIDTH) as usize..(501 * WIDTH) as usize];
    let last = middle.iter().rposition(|p| *p == [SHADE.0, SHADE.1, SHADE.2]);
    assert!((380..460).contains(&last.unwrap()), "{last:?}");
}

#[test]
fn a_run_that_ends_inside_the_annealing_is_shaded_to_its_end() {
    let picture = pixels(&plot(Some(2000), vec![curve("train", &falling(4, 1.0, 0.5))]));
    assert!(count(&picture, SHADE) > 700_000);
}

#[test]
fn points_that_are_not_finite_are_left_out() {
    let good = [(0.0, 3.0), (10.0, 2.0), (20.0, 1.0)];
    let mut bad = good.to_vec();
    bad.splice(1..1, [(5.0, f64::NAN), (6.0, f64::INFINITY), (f64::NAN, 1.0)]);
    bad.push((30.0, f64::NEG_INFINITY));
    let with = render_png(&plot(None, vec![curve("train", &bad)])).unwrap();
    let without = render_png(&plot(None, vec![curve("train", &good)])).unwrap();
    assert!(with == without);
}

#[test]
fn one_point_constant_values_and_zero_are_drawn() {
    for points in [vec![(100.0, 0.5)], vec![(0.0, 0.0)], vec![(0.0, 2e-7), (1e6, 2e-7)]] {
        let picture = pixels(&plot(None, vec![curve("train", &points)]));
        assert!(count(&picture, COLOURS[0]) > 100, "{points:?}");
    }
}

#[test]
fn a_plot_without_points_says_so_instead_of_failing() {
    let empty = pixels(&plot(Some(2000), vec![curve("train", &[]), curve("test", &[(1.0, f64::NAN)])]));
    let none = pixels(&plot(None, vec![]));
    for picture in [empty, none] {
        assert!(count(&picture, INK) > 1000, "the words are missing");
    }
}

#[test]
fn dashes_keep_their_rhythm_over_many_short_segments() {
    let dense: Vec<(i32, i32)> = (0..=100).map(|x| (x, 0)).collect();
    let expected = dashes(&[(0, 0), (100, 0)], 20.0, 10.0);
    assert_eq!(expected.len(), 4);
    let ends =
        |pieces: &[Vec<(i32, i32)>]| -> Vec<_> { pieces.iter().map(|p| (p[0], p[p.len() - 1])).collect() };
    assert_eq!(ends(&dashes(&dense, 20.0, 10.0)), ends(&expected));
}

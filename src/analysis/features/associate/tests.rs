use super::*;
use crate::analysis::features::by_latent::Collect;
use crate::analysis::labels::choose::{Label, Profile, tagged};
use crate::analysis::spill::Room;
use std::path::Path;

fn label(column: usize, value: &str, rows: [u64; 2]) -> Label {
    Label { column, column_name: format!("c{column}"), value: value.into(), rows }
}

/// Labels of rows in two columns, as places in `labels`; `None` is a row without a value in that column.
fn labelled(labels: &[(usize, &str)], rows: &[[Option<Vec<u32>>; 2]], second: &[bool]) -> Labelled {
    let mut out = Labelled {
        columns: vec!["c0".into(), "c1".into()],
        labels: labels.iter().map(|(column, value)| label(*column, value, [0; 2])).collect(),
        known: vec![[0; 2]; 2],
        ..Labelled::default()
    };
    for (row, cells) in rows.iter().enumerate() {
        let half = usize::from(second[row]);
        let mut profile = Profile::default();
        for (column, cell) in cells.iter().enumerate().filter_map(|(c, cell)| Some((c, cell.as_ref()?))) {
            out.known[column][half] += 1;
            profile.columns.push(column as u32);
            cell.iter().for_each(|&l| out.labels[l as usize].rows[half] += 1);
            profile.labels.extend(cell);
        }
        out.profiles.push(profile);
    }
    out
}

/// All tests by way of so much memory; the profile of a row is its number.
fn found_in(memory: u64, rows: &[Vec<f32>], labels: &Labelled, second: &[bool]) -> Vec<Association> {
    let n_latents = rows[0].len();
    let mut codes = Collect::new(n_latents, Room::new(Some(memory), Path::new("."), []));
    for (i, row) in rows.iter().enumerate() {
        for (latent, value) in (0u32..).zip(row).filter(|(_, v)| **v > 0.0) {
            codes.push(latent, tagged(i as u32, second[i]), *value).unwrap();
        }
    }
    associate(&codes.finish().unwrap(), labels, &AtomicBool::new(false)).unwrap()
}

fn found(rows: &[Vec<f32>], labels: &Labelled, second: &[bool]) -> Vec<Association> {
    found_in(u64::MAX, rows, labels, second)
}

#[test]
fn a_case_worked_by_hand() {
    // First half: true rows at 5, 4, 2, 0, others at 3, 0; and a row at 9 of which nothing is known.
    // F1 is 2/5 at 5, 4/6 at 4 and 6/8 at 2; the next lower activation is 0, so that the threshold is 1.
    // Second half: true rows at 3, 0.5, 0, others at 2, 0, 0.
    let rows = [5.0, 4.0, 3.0, 2.0, 0.0, 0.0, 9.0, 3.0, 2.0, 0.5, 0.0, 0.0, 0.0].map(|v| vec![v]);
    let cell = |t: &str| [(t != "?").then(|| if t == "a" { vec![0] } else { vec![] }), None];
    let cells = ["a", "a", "-", "a", "-", "a", "?", "a", "-", "a", "-", "a", "-"].map(cell);
    let second: Vec<bool> = (0..13).map(|i| i > 6).collect();
    let labels = labelled(&[(0, "a")], &cells, &second);
    let found = found(&rows, &labels, &second);
    assert_eq!(found.len(), 1);
    let a = found[0];
    assert_eq!((a.latent, a.label, a.threshold, a.chosen_f1), (0, 0, 1.0, 0.75));
    assert_eq!(a.counts, Confusion { tp: 1, fp: 1, missed: 2, tn: 2 });
    assert_eq!((a.counts.precision(), a.counts.recall(), a.counts.f1()), (0.5, 1.0 / 3.0, 0.4));
    // Of 9 pairs the true row wins 3 + 2 and ties in 2 of the last 3.
    assert!((a.auroc - 6.0 / 9.0).abs() < 1e-15, "{}", a.auroc);
    // 1 - C(3, 2) / C(6, 2).
    assert!((a.p - 0.8).abs() < 1e-14 && a.q == a.p, "{}", a.p);
    // Predicting all 6 known rows, 4 of them true, has F1 = 8 / 10.
    assert!((a.gain(&labels) - (0.75 - 0.8) / 0.2).abs() < 1e-14);
}

#[test]
fn a_latent_that_fires_on_no_true_row_of_the_first_half_is_not_tested() {
    let rows = [0.0, 1.0, 2.0, 0.0].map(|v| vec![v]);
    let cells = ["a", "-", "a", "-"].map(|t| [Some(if t == "a" { vec![0] } else { vec![] }), None]);
    let second = [false, false, true, true];
    let labels = labelled(&[(0, "a")], &cells, &second);
    assert!(found(&rows, &labels, &second).is_empty());
}

/// Everything from its definition, over all rows and all thresholds.
fn plainly(
    rows: &[Vec<f32>],
    labels: &Labelled,
    in_second: &[bool],
    latent: usize,
    label: usize,
) -> Option<(f32, Confusion, f64)> {
    let column = labels.labels[label].column as u32;
    let of_half = |second: bool| -> Vec<(f32, bool)> {
        let row = |i: usize| (rows[i][latent], labels.profiles[i].labels.contains(&(label as u32)));
        let known = |i: &usize| in_second[*i] == second && labels.profiles[*i].columns.contains(&column);
        (0..rows.len()).filter(known).map(row).collect()
    };
    let at = |rows: &[(f32, bool)], t: f32| {
        let n = |predicted: bool, truth: bool| {
            rows.iter().filter(|(v, l)| (*v >= t) == predicted && *l == truth).count() as u64
        };
        Confusion { tp: n(true, true), fp: n(true, false), missed: n(false, true), tn: n(false, false) }
    };
    let (first, second) = (of_half(false), of_half(true));
    let mut thresholds: Vec<f32> = first.iter().map(|r| r.0).filter(|v| *v > 0.0).collect();
    thresholds.sort_by(|a, b| b.total_cmp(a));
    let mut best = (0.0, 0.0);
    for t in thresholds {
        let f1 = at(&first, t).f1();
        best = if f1 > best.1 { (t, f1) } else { best };
    }
    let mut wins = 0.0;
    for (a, _) in second.iter().filter(|r| r.1) {
        for (b, _) in second.iter().filter(|r| !r.1) {
            wins += if a > b {
                1.0
            } else if a == b {
                0.5
            } else {
                0.0
            };
        }
    }
    let n_true = second.iter().filter(|r| r.1).count();
    let pairs = (n_true * (second.len() - n_true)) as f64;
    let next = first.iter().map(|r| r.0).filter(|v| *v < best.0).fold(0.0, f32::max);
    let threshold = (best.0 + next) / 2.0;
    (best.1 > 0.0).then(|| (threshold, at(&second, threshold), wins / pairs))
}

#[test]
fn the_sparse_sweep_gives_what_the_definitions_give() {
    // Few distinct values, so that there are ties; cells with several labels, and unknown ones.
    let mut state = 1u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let (n_rows, n_latents) = (120, 9);
    let rows: Vec<Vec<f32>> = (0..n_rows)
        .map(|_| (0..n_latents).map(|j| next(2 + j as u64 / 2).min(next(5)) as f32).collect())
        .collect();
    let cells: Vec<[Option<Vec<u32>>; 2]> = (0..n_rows)
        .map(|_| {
            let several = (0..3).filter(|_| next(3) == 0).collect();
            [(next(4) > 0).then_some(several), (next(3) > 0).then(|| vec![3 + next(2) as u32])]
        })
        .collect();
    let second: Vec<bool> = (0..n_rows).map(|_| next(2) == 1).collect();
    let names = [(0, "a"), (0, "b"), (0, "c"), (1, "d"), (1, "e")];
    let labels = labelled(&names, &cells, &second);
    let found = found(&rows, &labels, &second);
    assert_eq!(found_in(0, &rows, &labels, &second), found, "in runs on the disk");
    let mut left = found.iter();
    for latent in 0..n_latents {
        for label in 0..names.len() {
            let Some((threshold, counts, auroc)) = plainly(&rows, &labels, &second, latent, label) else {
                continue;
            };
            let Some(got) = left.next() else { panic!("no test of {latent}, {label}") };
            assert_eq!((got.latent, got.label), (latent as u32, label as u32));
            assert_eq!((got.threshold, got.counts), (threshold, counts), "{latent}, {label}");
            // Sums of halves are exact; the quotient is rounded once or twice.
            assert!((got.auroc - auroc).abs() < 1e-14, "{latent}, {label}: {} {auroc}", got.auroc);
        }
    }
    assert!(left.next().is_none() && found.len() > 30, "{} tests", found.len());
}

//! Weights of candidates as their definitions read: thresholds by bisection, slopes as whole matrices.

use crate::backend::relaxation::LEAST_REST;
use crate::spec::Relaxation;

/// Weights of the candidates with scores `r` and Gumbel noise `g` (P values each), and the matrix
/// `slope[i][j] = d w_i / d r_j`.
pub(super) fn weights(
    relaxation: Relaxation,
    k: usize,
    tau: f64,
    r: &[f64],
    g: &[f64],
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let p = r.len();
    if p <= k || relaxation == Relaxation::AnnealK {
        return (vec![1.0; p], vec![vec![0.0; p]; p]);
    }
    let n = p as f64;
    let mean = r.iter().sum::<f64>() / n;
    let sd = (r.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
    if sd == 0.0 {
        let (w, _) = of_standardised(relaxation, k, tau, &vec![0.0; p], g);
        return (w, vec![vec![0.0; p]; p]);
    }
    let u: Vec<f64> = r.iter().map(|r| (r - mean) / sd).collect();
    let (w, by_u) = of_standardised(relaxation, k, tau, &u, g);
    // d u_l / d r_j = ([l = j] - 1 / P - u_l u_j / P) / sd, multiplied out row by row.
    let standardised = |row: &Vec<f64>| -> Vec<f64> {
        let middle = row.iter().sum::<f64>() / n;
        let along = row.iter().zip(&u).map(|(s, u)| s * u).sum::<f64>() / n;
        row.iter().zip(&u).map(|(s, u)| (s - middle - u * along) / sd).collect()
    };
    (w, by_u.iter().map(standardised).collect())
}

fn of_standardised(
    relaxation: Relaxation,
    k: usize,
    tau: f64,
    u: &[f64],
    g: &[f64],
) -> (Vec<f64>, Vec<Vec<f64>>) {
    match relaxation {
        Relaxation::Subset => subset(k, tau, u, g),
        _ => lapsum(k, tau, u),
    }
}

fn lapsum(k: usize, tau: f64, u: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let f = |x: f64| if x <= 0.0 { 0.5 * x.exp() } else { 1.0 - 0.5 * (-x).exp() };
    let sum = |b: f64| u.iter().map(|u| f((u - b) / tau)).sum::<f64>();
    let (mut low, mut high) = (-100.0 * (1.0 + tau), 100.0 * (1.0 + tau));
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if sum(middle) > k as f64 {
            low = middle;
        } else {
            high = middle;
        }
    }
    let b = 0.5 * (low + high);
    let density: Vec<f64> = u.iter().map(|u| 0.5 * (-((u - b) / tau).abs()).exp()).collect();
    let all: f64 = density.iter().sum();
    let slope = |i: usize, j: usize| density[i] * (f64::from(i == j) - density[j] / all) / tau;
    let p = u.len();
    (
        u.iter().map(|u| f((u - b) / tau)).collect(),
        (0..p).map(|i| (0..p).map(|j| slope(i, j)).collect()).collect(),
    )
}

/// Slopes forwards: each softmax carries the matrix of its own scores' slopes along.
fn subset(k: usize, tau: f64, u: &[f64], g: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let p = u.len();
    let mut a: Vec<f64> = u.iter().zip(g).map(|(u, g)| u + g).collect();
    let mut by_u: Vec<Vec<f64>> = (0..p).map(|i| (0..p).map(|j| f64::from(i == j)).collect()).collect();
    let (mut w, mut slope) = (vec![0.0; p], vec![vec![0.0; p]; p]);
    for _ in 0..k {
        let max = a.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = a.iter().map(|a| ((a - max) / tau).exp()).collect();
        let total: f64 = e.iter().sum();
        let share: Vec<f64> = e.iter().map(|e| e / total).collect();
        for j in 0..p {
            let mean: f64 = (0..p).map(|l| share[l] * by_u[l][j]).sum();
            for i in 0..p {
                let moved = share[i] * (by_u[i][j] - mean) / tau;
                slope[i][j] += moved;
                let rest = 1.0 - share[i];
                by_u[i][j] -= if rest > LEAST_REST { moved / rest } else { 0.0 };
            }
        }
        for i in 0..p {
            w[i] += share[i];
            a[i] += (1.0 - share[i]).max(LEAST_REST).ln();
        }
    }
    (w, slope)
}

//! Weights of candidates as their definitions read: thresholds by bisection, slopes as whole matrices.

use crate::spec::Relaxation;

/// Weights of the candidates with scores `r` (P values), and the matrix
/// `slope[i][j] = d w_i / d r_j`.
pub(super) fn weights(relaxation: Relaxation, k: usize, tau: f64, r: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let p = r.len();
    if p <= k || relaxation == Relaxation::AnnealK {
        return (vec![1.0; p], vec![vec![0.0; p]; p]);
    }
    let n = p as f64;
    let mean = r.iter().sum::<f64>() / n;
    let sd = (r.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
    if sd == 0.0 {
        let (w, _) = lapsum(k, tau, &vec![0.0; p]);
        return (w, vec![vec![0.0; p]; p]);
    }
    let u: Vec<f64> = r.iter().map(|r| (r - mean) / sd).collect();
    let (w, by_u) = lapsum(k, tau, &u);
    // d u_l / d r_j = ([l = j] - 1 / P - u_l u_j / P) / sd, multiplied out row by row.
    let standardised = |row: &Vec<f64>| -> Vec<f64> {
        let middle = row.iter().sum::<f64>() / n;
        let along = row.iter().zip(&u).map(|(s, u)| s * u).sum::<f64>() / n;
        row.iter().zip(&u).map(|(s, u)| (s - middle - u * along) / sd).collect()
    };
    (w, by_u.iter().map(standardised).collect())
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

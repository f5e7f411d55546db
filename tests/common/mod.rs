//! What several tests need: golden files, a comparator that can fail, data made from a counter.
#![allow(dead_code, clippy::unwrap_used)]

pub mod device;
pub mod emulator;

use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use topk_sae::backend::Look;
use topk_sae::backend::cpu::{fast::FastCpu, reference::Reference};
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::data::Embeddings;
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::{philox4x32, unit};
use topk_sae::spec::{ModelSpec, Precision};

/// One golden file: its metadata and its tensors as float64.
pub struct Golden {
    pub name: String,
    pub meta: HashMap<String, String>,
    pub tensors: HashMap<String, Vec<f64>>,
}

impl Golden {
    pub fn num<T: std::str::FromStr>(&self, key: &str) -> T {
        let text = self.meta.get(key).unwrap_or_else(|| panic!("{}: no `{key}` in the metadata", self.name));
        text.parse().ok().unwrap_or_else(|| panic!("{}: `{key}` is {text}", self.name))
    }

    pub fn flag(&self, key: &str) -> bool {
        match self.meta.get(key).map(String::as_str) {
            Some("True") => true,
            Some("False") => false,
            other => panic!("{}: `{key}` is {other:?}", self.name),
        }
    }

    pub fn tensor(&self, key: &str) -> &[f64] {
        self.tensors.get(key).unwrap_or_else(|| panic!("{}: no tensor `{key}`", self.name))
    }

    pub fn f32(&self, key: &str) -> Vec<f32> {
        self.tensor(key).iter().map(|&v| v as f32).collect()
    }
}

/// What a golden file is a case of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// One pass of the relaxed top-k model.
    Relaxed,
    /// One pass of the sparse L1 + top-k model.
    SparseL1,
    /// Steps of Adam with the relaxed top-k model.
    Trajectory,
}

impl Golden {
    /// By metadata and tensors, never by the name of the file.
    pub fn kind(&self) -> Kind {
        let model = self.meta.get("model").map(String::as_str);
        let has = |key: &str| self.tensors.contains_key(key);
        match (model, has("losses"), has("loss")) {
            (Some("relaxed-topk"), true, _) => Kind::Trajectory,
            (Some("relaxed-topk"), false, true) => Kind::Relaxed,
            (Some("sparse-l1"), false, true) => Kind::SparseL1,
            _ => panic!(
                "{}: not understood: `model` is {model:?}, and relaxed-topk needs `loss` or `losses`, sparse-l1 `loss`",
                self.name
            ),
        }
    }
}

/// The folder that `variable` names, or `own` in the project. A test binary that was copied to another machine finds no
/// project there.
pub fn folder(variable: &str, own: &str) -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join(own);
    std::env::var_os(variable).map_or_else(own, PathBuf::from)
}

/// All golden files of a kind, from `SAE_GOLDENS` or the project's own copies. A file that is of no kind fails.
pub fn goldens(kind: Kind) -> Vec<Golden> {
    let folder = folder("SAE_GOLDENS", "tests/goldens");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}: no *.safetensors", folder.display());
    paths.iter().map(|p| read_golden(p)).filter(|golden| golden.kind() == kind).collect()
}

fn read_golden(path: &Path) -> Golden {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            other => panic!("{}: {name} is {other:?}", path.display()),
        };
        (name, values)
    });
    Golden {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        meta: header.metadata().clone().unwrap_or_default(),
        tensors: tensors.collect(),
    }
}

/// Largest difference over the largest size of the reference; NaN anywhere, or another length, gives NaN.
pub fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let scale = want.iter().fold(0.0f64, |a, v| a.max(v.abs()));
    let mut worst = 0.0f64;
    for (&g, &w) in got.iter().zip(want) {
        let difference = (f64::from(g) - w).abs();
        if !difference.is_finite() {
            return f64::NAN;
        }
        worst = worst.max(difference);
    }
    if scale == 0.0 { worst } else { worst / scale }
}

/// Fails unless `got` is within `tolerance` of `want`, relative to its largest value.
pub fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "{what}: relative error {error:.3e}, allowed {tolerance:.0e}");
}

pub fn close32(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
    close(what, got, &want, tolerance);
}

pub fn spec(k: usize) -> ModelSpec {
    ModelSpec::plain(k).with(|spec| {
        spec.objective.dead_after = 100;
    })
}

/// Uniform on [-1, 1), from a counter: the same on every machine.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n).map(|i| 2.0 * unit(philox4x32([i as u32, seed, 7, 7], [1, 2])[0]) - 1.0).collect()
}

pub fn embeddings(d_in: usize, rows: Vec<f32>) -> Arc<Embeddings> {
    let ids = (0..rows.len() / d_in).map(|n| format!("row{n}")).collect();
    Arc::new(Embeddings::from_rows(ids, d_in, rows).unwrap())
}

pub fn random_params(d: usize, m: usize, tied: bool, seed: u32) -> Params {
    let scale = |v: Vec<f32>, s: f32| v.into_iter().map(|x| x * s).collect::<Vec<f32>>();
    let w = 1.5 / (d as f32).sqrt();
    Params {
        d_in: d,
        n_latents: m,
        w_enc: scale(values(m * d, seed), w),
        w_dec: (!tied).then(|| scale(values(m * d, seed + 1), w)),
        b_pre: scale(values(d, seed + 2), 0.1),
        b_lat: scale(values(m, seed + 3), 0.1),
        threshold: None,
    }
}

/// All backends on the same data and state, one test body for each: the CPU's, and the engine on the test's device.
pub fn backends(
    data: &Arc<Embeddings>,
    spec: &ModelSpec,
    state: &TrainState,
) -> Vec<(&'static str, Box<dyn Look>)> {
    let device = device::device(1);
    let engine = Engine::new("device".into(), device, data.clone(), spec.clone(), Precision::F32, state);
    let mut all = cpu_backends(data, spec, state);
    all.push((if device::on_card() { "card" } else { "emulation" }, Box::new(engine.unwrap())));
    all
}

/// The CPU's backends, likewise.
pub fn cpu_backends(
    data: &Arc<Embeddings>,
    spec: &ModelSpec,
    state: &TrainState,
) -> Vec<(&'static str, Box<dyn Look>)> {
    vec![
        ("reference", Box::new(Reference::new(data.clone(), spec.clone(), state.clone()))),
        ("fast", Box::new(FastCpu::new(data.clone(), spec.clone(), state.clone()))),
    ]
}

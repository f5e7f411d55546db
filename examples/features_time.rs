//! Times `sae features` and its stages on made-up data and prints JSON:
//! `features_time [LATENTS] [ROWS] [LABELS] [D]`, by default 16384 20000 50 1024, on all cores.
//!
//! Random weights and rows, so that every latent fires on about as many rows: the most tests that a code of k = 32
//! allows. Labels are five columns of equally many values.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use topk_sae::analysis::Source;
use topk_sae::analysis::features::tables::{write_associations, write_features};
use topk_sae::analysis::features::{
    FeaturesRequest, associate::associate, features_of, gather::Keep, neighbours::neighbours,
};
use topk_sae::analysis::labels::LabelTable;
use topk_sae::analysis::labels::choose::{LabelOptions, Labelled, RowLabels};
use topk_sae::backend::DeviceChoice;
use topk_sae::config::{Config, Options};
use topk_sae::error::{Error, Result};
use topk_sae::model::Params;
use topk_sae::model::file as model_file;
use topk_sae::spec::Init;

const COLUMNS: usize = 5;

fn main() -> Result<()> {
    let mut sizes = std::env::args().skip(1).map(|arg| arg.parse::<usize>().ok());
    let mut size = |default: usize| sizes.next().flatten().unwrap_or(default);
    let (m, n, n_labels, d) = (size(16_384), size(20_000), size(50), size(1024));
    let folder = tempfile::tempdir().map_err(Error::io(Path::new("a temporary folder"), "make"))?;
    let at = |name: &str| folder.path().join(name);
    make_data(&at("data.h5"), n, d).map_err(|e| Error::Failed(format!("HDF5: {e}")))?;
    make_model(&at("model.safetensors"), m, d)?;
    make_labels(&at("labels.tsv"), n, n_labels)?;
    let options = LabelOptions { columns: None, min_rows: 10, max_values: 500, unknown: vec![] };
    let request = FeaturesRequest {
        source: Source {
            given: None,
            model: at("model.safetensors"),
            data: vec![at("data.h5")],
            reading: Default::default(),
            device: DeviceChoice::Cpu,
            quiet: true,
        },
        split: None,
        pool: false,
        top: 10,
        neighbours: 5,
        labels: Some((at("labels.tsv"), options.clone())),
        memory: None,
        outputs: vec![],
    };
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (found, gathered) = features_of(&request, Keep::Labelled, &stop)?;
    let mut text = vec![];
    write_features(&mut text, &found).map_err(Error::io(&at("features.tsv"), "write"))?;
    let labels = found.labels.as_ref().ok_or_else(|| Error::Failed("no labels".into()))?;
    write_associations(&mut text, &labels.associations, &labels.labels)
        .map_err(Error::io(&at("associations.tsv"), "write"))?;
    let all = start.elapsed().as_secs_f64();
    // Two of the stages again, alone.
    let start = Instant::now();
    neighbours(&gathered.params, 5, true, &stop)?;
    let near = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let tests = associate(&gathered.codes, &labels_of_rows(&at("labels.tsv"), n, &options)?, &stop)?.len();
    let told = start.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "latents": m, "rows": n, "d_in": d, "labels": labels.labels.len(), "tests": tests, "alive": found.alive,
            "active": gathered.codes.n_entries(), "threads": rayon::current_num_threads(), "table_bytes": text.len(),
            "seconds": all, "seconds_of_neighbours": near, "seconds_of_labels": told,
        })
    );
    Ok(())
}

/// The labels of the rows that [`make_data`] makes.
fn labels_of_rows(path: &Path, n: usize, options: &LabelOptions) -> Result<Labelled> {
    let table = LabelTable::read(path)?;
    let mut labels = RowLabels::new(&table, options)?;
    for row in 0..n {
        let id = format!("data:{row}");
        labels.row(&id, &id)?;
    }
    labels.finish()
}

/// Uniform numbers in -1..1 (xorshift).
fn uniform(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn make_data(path: &Path, n: usize, d: usize) -> hdf5::Result<()> {
    let file = hdf5::File::create(path)?;
    file.new_dataset::<f32>().shape((n, d)).create("embeddings")?.write_raw(&uniform(n * d))
}

fn make_model(path: &Path, m: usize, d: usize) -> Result<()> {
    let options = Options { latents: Some(m), k: Some(32), ..Options::default() };
    let config = Config::resolve(&options, d, 1000)?;
    let params = Params::init(d, m, false, &Init::Linear, 1);
    model_file::save(path, &params, &config.model_meta(0, &vec![0.0; d]))
}

fn make_labels(path: &Path, n: usize, n_labels: usize) -> Result<()> {
    let values = (n_labels / COLUMNS).max(2);
    let mut text = "id\ta\tb\tc\td\te\n".to_owned();
    for row in 0..n {
        let cells: Vec<String> =
            (0..COLUMNS).map(|c| format!("v{}", (row * (c + 7) + row / 13) % values)).collect();
        text += &format!("data:{row}\t{}\n", cells.join("\t"));
    }
    topk_sae::files::write_whole(path, text.as_bytes())
}

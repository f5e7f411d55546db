//! `sae encode` and `sae compare`.

use super::{Place, SMALL};
use crate::runs::{metrics, sae, sae_fails, sae_ok, start, tensors};
use std::collections::HashMap;
use std::path::Path;

/// The model of a run and its data, worked out in float64: the active latents of each row, by rising latent.
fn by_hand(run: &Path, data: &Path, k: Option<usize>) -> Vec<Vec<(usize, f64)>> {
    let model: HashMap<String, Vec<f64>> = tensors(&run.join("model.safetensors"))
        .into_iter()
        .map(|(name, bytes)| {
            let values = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
            (name, values.collect())
        })
        .collect();
    let d = model["b_pre"].len();
    let file = hdf5::File::open(data).unwrap();
    let values: Vec<f32> = file.dataset("embeddings").unwrap().read_raw().unwrap();
    let row = |x: &[f32]| {
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / d as f64;
        let std = (x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (d as f64 - 1.0)).sqrt();
        let scores = model["w_enc"].chunks_exact(d).zip(&model["b_lat"]).map(|(w, b)| {
            let dot = |i: usize| ((f64::from(x[i]) - mean) / (std + 1e-5) - model["b_pre"][i]) * w[i];
            (0..d).map(dot).sum::<f64>() + b
        });
        let mut active: Vec<(usize, f64)> = scores.enumerate().filter(|(_, z)| *z > 0.0).collect();
        active.sort_by(|a, b| b.1.total_cmp(&a.1));
        active.truncate(k.unwrap_or(usize::MAX));
        active.sort_by_key(|(j, _)| *j);
        active
    };
    values.chunks_exact(d).map(row).collect()
}

fn same(got: &[(usize, f64)], want: &[(usize, f64)]) {
    let latents = |code: &[(usize, f64)]| code.iter().map(|(j, _)| *j).collect::<Vec<_>>();
    assert_eq!(latents(got), latents(want));
    for ((_, got), (_, want)) in got.iter().zip(want) {
        // Scores are sums of 16 float32 products of numbers near 1.
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} {want}");
    }
}

fn ids(file: &hdf5::File) -> Vec<String> {
    let ids = file.dataset("ids").unwrap().read_raw::<hdf5::types::VarLenUnicode>().unwrap();
    ids.into_iter().map(|id| id.to_string()).collect()
}

fn table(path: &Path) -> HashMap<String, Vec<(usize, f64)>> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("id\tlatent\tvalue"));
    let mut rows: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let entry = (fields[1].parse().unwrap(), f64::from(fields[2].parse::<f32>().unwrap()));
        rows.entry(fields[0].to_owned()).or_default().push(entry);
    }
    rows
}

#[test]
fn the_codes_of_a_top_k_model_are_those_of_the_formula() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.name("codes.h5"));
    let told = sae_ok(["encode", &run, &data, "-o", &out]);
    assert!(told.contains("300 rows") && told.contains("of 64 latents"), "{told}");
    let file = hdf5::File::open(&out).unwrap();
    let number = |name: &str| file.attr(name).unwrap().read_scalar::<u64>().unwrap();
    assert_eq!((number("k"), number("width"), number("d_in")), (4, 64, 16));
    let indices: Vec<u32> = file.dataset("indices").unwrap().read_raw().unwrap();
    let values: Vec<f32> = file.dataset("values").unwrap().read_raw().unwrap();
    assert_eq!(file.dataset("values").unwrap().shape(), [300, 4]);
    let want = by_hand(&place.path("run"), &place.path("data.h5"), Some(4));
    let ids = ids(&file);
    sae_ok(["encode", &run, &data, "-o", &place.name("codes.tsv"), "--format=tsv"]);
    let lines = table(&place.path("codes.tsv"));
    for (n, want) in want.iter().enumerate() {
        assert_eq!(ids[n], format!("id{n:04}"));
        let places = 4 * n..4 * n + 4;
        let row: Vec<(usize, f64)> = places.map(|i| (indices[i] as usize, f64::from(values[i]))).collect();
        same(&row[..want.len()], want);
        assert!(row[want.len()..].iter().all(|place| *place == (0, 0.0)), "a free place holds {row:?}");
        same(lines.get(&ids[n]).map_or(&[][..], |l| l), want);
    }
}

#[test]
fn the_codes_of_a_relu_model_are_compressed_rows() {
    let place = Place::with_data(300, 16);
    place.train("run", &["--inference=relu", "--anneal-steps=0"]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.name("codes.h5"));
    sae_ok(["encode", &run, &data, "-o", &out]);
    let file = hdf5::File::open(&out).unwrap();
    let indptr: Vec<u64> = file.dataset("indptr").unwrap().read_raw().unwrap();
    let indices: Vec<u32> = file.dataset("indices").unwrap().read_raw().unwrap();
    let values: Vec<f32> = file.dataset("data").unwrap().read_raw().unwrap();
    let want = by_hand(&place.path("run"), &place.path("data.h5"), None);
    assert_eq!((indptr.len(), indptr[300] as usize), (301, indices.len()));
    for (n, want) in want.iter().enumerate() {
        let places = indptr[n] as usize..indptr[n + 1] as usize;
        let row: Vec<(usize, f64)> = places.map(|i| (indices[i] as usize, f64::from(values[i]))).collect();
        same(&row, want);
    }
}

#[test]
fn a_split_holds_the_rows_that_splits_tsv_names() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.name("codes.h5"));
    sae_ok(["encode", &run, &data, "--out", &out, "--split=val"]);
    let splits = std::fs::read_to_string(place.path("run/splits.tsv")).unwrap();
    let val: Vec<&str> = splits.lines().filter_map(|line| line.strip_suffix("\tval")).collect();
    assert_eq!(ids(&hdf5::File::open(&out).unwrap()), val);
}

#[test]
fn encode_refuses_what_would_lose_a_file_and_leaves_nothing_half_done() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.name("codes.h5"));
    let mine = b"\x89HDF, mine";
    std::fs::write(&out, mine).unwrap();
    let (status, text) = sae_fails(["encode", &run, &data, "-o", &out]);
    assert!(status == 2 && text.contains("--overwrite"), "{text}");
    let model = place.name("alone.safetensors");
    std::fs::copy(place.path("run/model.safetensors"), &model).unwrap();
    for input in [&data, &model] {
        let (status, text) = sae_fails(["encode", &model, &data, "-o", input, "--overwrite"]);
        assert!(status == 2 && text.contains("input"), "{text}");
    }
    crate::write_data(&place.path("wide.h5"), 20, 17);
    let (status, text) = sae_fails(["encode", &run, &place.name("wide.h5"), "-o", &out, "--overwrite"]);
    assert!(status == 1 && text.contains("17 values") && text.contains("16"), "{text}");
    assert_eq!(std::fs::read(&out).unwrap(), mine);
    let (status, text) = sae_fails(["encode", &run, &data, "-o", &place.name("no/codes.h5")]);
    assert!(status == 1 && text.contains("no/codes.h5"), "{text}");
    sae_ok(["encode", &run, &data, "-o", &out, "--overwrite"]);

    assert_eq!(ids(&hdf5::File::open(&out).unwrap()).len(), 300);
}

#[test]
fn compare_sorts_by_validation_fvu_and_marks_runs_that_are_not_finished() {
    let place = Place::with_data(300, 16);
    place.train("small", &["--k=2", "--steps=20"]);
    place.train("large", &["--k=16"]);
    std::fs::remove_file(place.path("small/summary.json")).unwrap();
    let (small, large, plot) = (place.name("small"), place.name("large"), place.name("frontier.png"));
    let text = sae_ok(["compare", &small, &large, "--plot", &plot]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("run") && lines[2].starts_with(&large), "{text}");
    assert!(lines[3].starts_with(&small) && lines[3].contains("20*"), "{text}");
    assert!(text.contains("not finished"), "{text}");
    let picture = std::fs::read(&plot).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    let rows: serde_json::Value =
        serde_json::from_str(&sae_ok(["compare", &small, &large, "--json"])).unwrap();
    let summary = super::json(&place.path("large/summary.json"));
    assert_eq!(rows[0]["val_fvu"], summary["val"]["fvu"]);
    assert_eq!((&rows[0]["finished"], &rows[1]["finished"]), (&true.into(), &false.into()));
    let last = metrics(&place.path("small")).pop().unwrap();
    // Without its clock a line has the dead share last.
    assert_eq!(rows[1]["dead_fraction"].as_f64(), last.last().unwrap().parse().ok());
}

#[test]
fn compare_tells_a_folder_that_is_no_run() {
    let place = Place::with_data(300, 16);
    let folder = place.folder.path().to_str().unwrap().to_owned();
    let (status, text) = sae_fails(["compare", &folder]);
    assert!(status == 2 && text.contains("not a run folder") && text.contains("config.toml"), "{text}");
}

#[test]
fn an_interrupted_encode_leaves_neither_half_a_file_nor_the_old_one_damaged() {
    let place = Place::with_data(60_000, 16);
    let mut args = vec!["train".to_owned(), place.name("data.h5"), "--out".into(), place.name("run")];
    args.extend(SMALL.map(str::to_owned));
    args.extend(["--latents=2048".into(), "--steps=1".into(), "--eval-rows=10".into()]);
    assert!(sae(args).status.success());
    let out = place.path("codes.h5");
    let names = ["encode", &place.name("run"), &place.name("data.h5"), "-o", out.to_str().unwrap()];
    let mut child = start(&mut crate::runs::command(names));
    let unfinished = || {
        let names = std::fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".tmp")).count()
    };
    while unfinished() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the test is too small: encode ended at once");
        std::thread::yield_now();
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!out.exists() && unfinished() == 0);
}

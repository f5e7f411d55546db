//! Biohub's format, both ways.

use super::made::*;
use super::*;

/// A layer as the library writes it, with numbers that depend on the layer, and idf and max that are not 1.
fn write_layer(folder: &Path, layer: u32, more: &[(&str, &[usize], &[f32])]) {
    let (w_enc, w_dec) = (numbers(D * M, 10 + layer), numbers(M * D, 20 + layer));
    let (b_dec, idf, max) = (numbers(D, 30 + layer), vec![3.0; M], vec![0.5; M]);
    let mut all: Vec<(&str, &[usize], &[f32])> = vec![
        ("W_enc", &[D, M], &w_enc),
        ("W_dec", &[M, D], &w_dec),
        ("b_dec", &[D], &b_dec),
        ("idf", &[M], &idf),
        ("max", &[M], &max),
    ];
    all.extend(more);
    write(&folder.join(format!("layer_{layer}.safetensors")), &all);
}

fn write_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let mut config = json!({
        "model_type": "esmc_sae", "d_model": D, "codebook_dim": M, "k": K, "available_layers": [3, 7],
        "use_residual_update_instead_of_states": false,
    });
    change(&mut config);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// Data, and a folder of two layers that no program of ours wrote.
fn made_up() -> (Place, PathBuf) {
    let place = Place::with_data(40, D);
    let folder = place.path("published");
    std::fs::create_dir(&folder).unwrap();
    write_config(&folder, |_| ());
    write_layer(&folder, 3, &[]);
    write_layer(&folder, 7, &[]);
    (place, folder)
}

/// Codes (rows, M) by `EsmcSaeLayer.forward`, written out in float64.
fn codes_of_the_library(folder: &Path, layer: u32, rows: &[f32]) -> Vec<Vec<f64>> {
    let file = folder.join(format!("layer_{layer}.safetensors"));
    let tensors: BTreeMap<String, Vec<u8>> = tensors(&file).into_iter().collect();
    let read = |name: &str| -> Vec<f64> {
        let values = tensors[name].chunks_exact(4);
        values.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
    };
    let (w_enc, b_dec) = (read("W_enc"), read("b_dec"));
    let code = |row: &[f32]| {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / D as f64;
        let centred: Vec<f64> = row.iter().map(|&v| f64::from(v) - mean).collect();
        let std = (centred.iter().map(|v| v * v).sum::<f64>() / (D - 1) as f64).sqrt();
        let x: Vec<f64> = centred.iter().map(|v| v / (std + 1e-5)).collect();
        let scores: Vec<f64> = (0..M)
            .map(|j| (0..D).map(|i| (x[i] - b_dec[i]) * w_enc[i * M + j]).sum::<f64>().max(0.0))
            .collect();
        let mut order: Vec<usize> = (0..M).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut code = vec![0.0; M];
        order[..K].iter().for_each(|&j| code[j] = scores[j]);
        code
    };
    rows.chunks_exact(D).map(code).collect()
}

fn import(place: &Place, from: &Path, more: &[&str]) -> std::process::Output {
    let out = place.name("model.safetensors");
    let mut args = vec!["import", from.to_str().unwrap(), "-o", &out, "--overwrite"];
    args.extend(more);
    sae(args)
}

fn refused(place: &Place, from: &Path, more: &[&str]) -> String {
    let _ = std::fs::remove_file(place.path("model.safetensors"));
    let output = import(place, from, more);
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !place.path("model.safetensors").exists(), "{line}");
    line
}

#[test]
fn a_layer_of_a_published_folder_gives_the_codes_of_the_library() {
    let (place, folder) = made_up();
    let rows = runs::low_rank(40, D);
    for layer in [3, 7] {
        let want = codes_of_the_library(&folder, layer, &rows);
        let flag = format!("--layer={layer}");
        let said = String::from_utf8(import(&place, &folder, &[&flag]).stdout).unwrap();
        assert!(said.contains(&format!("hidden states h[{layer}] of ESMC")), "{said}");
        assert_same(&codes(&place, &place.path("model.safetensors")), &want, &flag);
        // The file itself is one layer.
        assert!(import(&place, &folder.join(format!("layer_{layer}.safetensors")), &[]).status.success());
        assert_same(&codes(&place, &place.path("model.safetensors")), &want, "the file");
    }
    assert!(codes_of_the_library(&folder, 3, &rows) != codes_of_the_library(&folder, 7, &rows));
}

#[test]
fn the_layer_is_asked_for_where_there_are_several_and_named_where_there_is_none() {
    let (place, folder) = made_up();
    let line = refused(&place, &folder, &[]);
    assert!(line.contains("has layers 3, 7") && line.contains("--layer 3 -o"), "{line}");
    let line = refused(&place, &folder, &["--layer=4"]);
    assert!(line.contains("has no layer 4, but 3, 7"), "{line}");
    let line = refused(&place, &folder.join("layer_3.safetensors"), &["--layer=7"]);
    assert!(line.contains("is layer 3 by its name"), "{line}");
    // Listed, and not downloaded: what is there needs no flag.
    std::fs::remove_file(folder.join("layer_7.safetensors")).unwrap();
    assert!(import(&place, &folder, &[]).status.success());
    let line = refused(&place, &folder, &["--layer=7"]);
    assert!(line.contains("layer_7.safetensors is not beside it"), "{line}");
    std::fs::remove_file(folder.join("layer_3.safetensors")).unwrap();
    let line = refused(&place, &folder, &[]);
    assert!(line.contains("lists layers 3, 7") && line.contains("download one"), "{line}");
    // Without the key there is one layer, 0.
    write_config(&folder, |c| drop(c.as_object_mut().unwrap().remove("available_layers")));
    write_layer(&folder, 0, &[]);
    assert!(import(&place, &folder, &[]).status.success());
}

#[test]
fn rows_that_are_residual_updates_are_said_and_kept() {
    let (place, folder) = made_up();
    write_config(&folder, |c| c["use_residual_update_instead_of_states"] = json!(true));
    let want = "residual updates h[7] - h[6] of ESMC";
    let said = String::from_utf8(import(&place, &folder, &["--layer=7"]).stdout).unwrap();
    assert!(said.contains(want), "{said}");
    assert!(sae_ok(["inspect", &place.name("model.safetensors")]).contains(want));
    let out = place.name("again");
    let model = place.name("model.safetensors");
    sae_ok(["export", &model, "--format=esmc", "--layer=7", "--residual-updates", "-o", &out]);
    assert_eq!(json(place.path("again/config.json"))["use_residual_update_instead_of_states"], true);
    // Nothing was folded: the tensors are what they were.
    let (before, after) =
        (tensors(&folder.join("layer_7.safetensors")), tensors(&place.path("again/layer_7.safetensors")));
    let [before, after]: [BTreeMap<_, _>; 2] = [before, after].map(|all| all.into_iter().collect());
    for name in ["W_enc", "W_dec", "b_dec"] {
        assert!(before[name] == after[name], "{name}");
    }
}

#[test]
fn a_published_folder_that_is_not_understood_is_refused_by_name() {
    type Break = fn(&Path);
    let cases: [(&str, Break); 8] = [
        ("b_enc", |f| write_layer(f, 3, &[("b_enc", &[M], &[1.0; M])])),
        ("has no `k`", |f| write_config(f, |c| drop(c.as_object_mut().unwrap().remove("k")))),
        ("model_type `esmc`", |f| write_config(f, |c| c["model_type"] = json!("esmc"))),
        ("activation", |f| write_config(f, |c| c["activation"] = json!("batchtopk"))),
        ("W_enc is [16, 64], not [17, 64]", |f| write_config(f, |c| c["d_model"] = json!(D + 1))),
        ("`available_layers` is \"all\"", |f| write_config(f, |c| c["available_layers"] = json!("all"))),
        ("must lie between 1", |f| write_config(f, |c| c["k"] = json!(M + 1))),
        ("has no config.json", |f| std::fs::remove_file(f.join("config.json")).unwrap()),
    ];
    let (place, folder) = made_up();
    for (name, change) in cases {
        write_config(&folder, |_| ());
        write_layer(&folder, 3, &[]);
        change(&folder);
        let line = refused(&place, &folder, &["--layer=3", "--format=esmc"]);
        assert!(line.contains(name) && line.lines().count() == 1, "{name}: {line}");
    }
    // What it is read from is not written over.
    write_config(&folder, |_| ());
    let kept = std::fs::read(folder.join("layer_3.safetensors")).unwrap();
    let (from, out) = (folder.to_str().unwrap(), folder.join("layer_3.safetensors"));
    let (_, line) = sae_fails(["import", from, "--layer=7", "-o", out.to_str().unwrap(), "--overwrite"]);
    assert!(std::fs::read(&out).unwrap() == kept, "{line}");
}

#[test]
fn esmc_has_the_tensors_and_settings_of_its_format() {
    let place = Place::trained(&[]);
    let (run, out, data) = (place.name("run"), place.name("esmc"), place.name("data.h5"));
    let args = ["export", &run, "--format=esmc", "--layer=5", "-o", &out];
    sae_ok(args);
    let file = place.path("esmc/layer_5.safetensors");
    let want = f32s(&[("W_enc", &[D, M]), ("W_dec", &[M, D]), ("b_dec", &[D]), ("idf", &[M]), ("max", &[M])]);
    assert_eq!(shapes(&file), want);
    let want = json!({
        "model_type": "esmc_sae", "d_model": D, "codebook_dim": M, "k": K, "available_layers": [5],
        "use_residual_update_instead_of_states": false,
    });
    assert_eq!(json(place.path("esmc/config.json")), want);
    assert!(tensor(&file, "idf") == [1.0; M] && tensor(&file, "max") == [1.0; M]);

    // The same codes, by the library's formulas and back here.
    let want = codes(&place, &place.path("run"));
    assert!(
        tensors(&place.path("run/model.safetensors"))
            .iter()
            .any(|(name, b)| name == "b_lat" && b.iter().any(|&b| b != 0))
    );
    // Values of the encoder grow where the mean of b_dec is small, and with 16 of them by some ten.
    let near = |got: &[Vec<f64>], what: &str| {
        let largest = want.iter().flatten().fold(0.0, |a: f64, &b| a.max(b));
        let far = got
            .iter()
            .flatten()
            .zip(want.iter().flatten())
            .fold(0.0, |far: f64, (a, b)| far.max((a - b).abs()));
        assert!(far < 2e-5 * largest, "{what}: {far} of {largest}");
    };
    near(&codes_of_the_library(&place.path("esmc"), 5, &runs::low_rank(120, D)), "the library");
    near(&codes(&place, &place.import(&place.path("esmc"), "back.safetensors")), "back");

    // With data: how often and how strongly.
    sae_ok(["export", &run, "--format=esmc", "--layer=5", "-o", &out, "--overwrite", "--data", &data]);
    let (idf, max) = (tensor(&file, "idf"), tensor(&file, "max"));
    let mut seen = 0;
    for latent in 0..M {
        let values: Vec<f64> = want.iter().map(|code| code[latent]).filter(|&v| v > 0.0).collect();
        seen += usize::from(!values.is_empty());
        let want = (120.0 / values.len().max(1) as f64).ln();
        assert!((f64::from(idf[latent]) - want).abs() < 1e-6, "latent {latent}");
        let want = values.iter().fold(0.0, |a: f64, &b| a.max(b));
        assert_eq!(max[latent], if want > 0.0 { want as f32 } else { 1.0 }, "latent {latent}");
    }
    assert!(seen > 0 && seen < M, "latents that fire and such as do not");
}

#[test]
fn a_reconstruction_that_esmc_moves_is_said() {
    // A bias of mean zero, which there is nothing to divide by: it is moved.
    let place = Place::trained(&["--pre-bias=none"]);
    let (folder, said) = place.export("esmc");
    let readme = std::fs::read_to_string(folder.join("README.txt")).unwrap();
    for text in [&said, &readme] {
        assert!(text.contains("no bias of latents") && text.contains("moves by 0.0020"), "{text}");
    }
}

#[test]
fn what_esmc_cannot_hold_and_flags_that_are_for_it_alone_are_refused() {
    let place = Place::trained(&["--no-normalize"]);
    let (run, out) = (place.name("run"), place.name("no"));
    let (status, line) = sae_fails(["export", &run, "--format=esmc", "-o", &out]);
    assert!(status == 2 && line.contains("--no-normalize") && line.contains("--format saelens"), "{line}");
    for flag in ["--layer=3", "--residual-updates"] {
        let (status, line) = sae_fails(["export", &run, "--format=saelens", flag, "-o", &out]);
        let name = flag.split('=').next().unwrap();
        assert!(status == 2 && line.contains(name) && line.contains("--format esmc"), "{line}");
    }
    assert!(!place.path("no").exists());
    let (folder, _) = place.export("saelens");
    let line = refused(&place, &folder, &["--layer=3"]);
    assert!(line.contains("--layer is for esmc"), "{line}");
}

//! `sae report`. How the page looks and behaves in a browser is checked by `tests/python/check_report.py`.

use super::Place;
use crate::runs::{sae_fails, sae_ok, write_named};
use serde_json::Value;
use std::path::Path;

const EVIL: &str = "<script>alert(1)</script>";
const EVIL_LABEL: &str = "a\" onmouseover='alert(2)' x=\"&<img src=x onerror=alert(3)>";

fn page(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_report_is_one_file_with_all_that_there_is_to_say() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let run = place.name("run");
    let told = sae_ok(["report", &run]);
    assert!(told.contains("report.html") && told.contains("of "), "{told}");
    let html = page(&place.path("run/report.html"));
    for part in [
        "<h1>run</h1>",
        "D = 16, M = 64, k = 4",
        "anneal-steps",
        "Final metrics",
        "Dead latents",
        "annealing",
    ] {
        assert!(html.contains(part), "{part}");
    }
    let summary = super::json(&place.path("run/summary.json"));
    let fvu = topk_sae::text::number(summary["val"]["fvu"].as_f64().unwrap());
    assert!(html.contains(&format!("<b>{fvu}</b>")), "{fvu}");
    // Four sets of curves and two histograms; a point an evaluation and split.
    assert_eq!(html.matches("<svg").count(), 6);
    let evaluations = crate::runs::metrics(&place.path("run")).len();
    assert_eq!(html.matches("<circle").count(), evaluations * (3 * 3 + 1));
    let features: Value =
        serde_json::from_str(&sae_ok(["features", &run, &place.name("data.h5"), "--json"])).unwrap();
    let alive = features["alive"].as_u64().unwrap() as usize;
    assert_eq!(html.matches("<tr id=\"latent-").count(), alive);
    for latent in
        features["latents"].as_array().unwrap().iter().filter(|l| l["active_rows"].as_u64() > Some(0))
    {
        assert!(html.contains(latent["top"][0]["id"].as_str().unwrap()));
    }
    // Nothing is loaded from anywhere.
    for from in ["http:", "https:", "src=", "@import", "url(", "<link", "<iframe"] {
        assert!(!html.contains(from), "{from}");
    }
    let few = place.name("few.html");
    let told: Value =
        serde_json::from_str(&sae_ok(["report", &run, "-o", &few, "--features=3", "--split=val", "--json"]))
            .unwrap();
    assert_eq!((&told["shown"], told["rows"].as_u64() < Some(100)), (&3.into(), true));
    assert_eq!(page(Path::new(&few)).matches("<tr id=\"latent-").count(), 3);
    assert!(page(Path::new(&few)).contains("validation rows of"));
}

#[test]
fn a_model_alone_has_a_report_of_its_latents_and_none_of_a_training() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (model, data, out) =
        (place.name("alone.safetensors"), place.name("data.h5"), place.name("alone.html"));
    std::fs::copy(place.path("run/model.safetensors"), &model).unwrap();
    let (status, line) = sae_fails(["report", &model, "-o", &out]);
    assert!(status == 2 && line.contains("name the data, `sae report "), "{line}");
    let (status, line) = sae_fails(["report", &model, &data]);
    assert!(status == 2 && line.contains("-o report.html"), "{line}");
    sae_ok(["report", &model, &data, "-o", &out]);
    let html = page(Path::new(&out));
    for part in ["<h1>alone.safetensors</h1>", "D = 16, M = 64, k = 4", "Dead latents", "Firing rates"] {
        assert!(html.contains(part), "{part}");
    }
    for part in ["Final metrics", "not finished", "Settings", "#metrics", "#curves", "#settings"] {
        assert!(!html.contains(part), "{part}");
    }
    // The same latents as of the run.
    sae_ok(["report", &place.name("run"), &data]);
    let rows = |html: &str| html.split("<tr id=\"latent-").skip(1).map(str::to_owned).collect::<Vec<_>>();
    let of_run = page(&place.path("run/report.html"));
    let up_to_last = rows(&html).len() - 1;
    assert!(up_to_last > 1 && rows(&html)[..up_to_last] == rows(&of_run)[..up_to_last]);
    // A page that is there is kept.
    let (status, line) = sae_fails(["report", &model, &data, "-o", &out]);
    assert!(status == 2 && line.contains("--overwrite"), "{line}");
}

#[test]
fn what_comes_from_data_is_text_and_never_markup() {
    let place = Place::with_data(10, 16);
    let ids: Vec<String> = (0..300).map(|n| format!("{EVIL}{n:04}")).collect();
    write_named(&place.path("data.h5"), &ids, 16);
    place.train(EVIL.split('/').next().unwrap(), &[]);
    let lines = ids.iter().enumerate().map(|(n, id)| format!("{id}\t{}\n", [EVIL_LABEL, "plain"][n % 2]));
    let table = format!("id\t<b>kind</b>\t<i>same</i>\n{}", lines.collect::<String>().replace('\n', "\tx\n"));
    std::fs::write(place.path("<u>labels.tsv"), table).unwrap();
    let (run, out) = (place.name(EVIL.split('/').next().unwrap()), place.name("page.html"));
    sae_ok(["report", &run, "--labels", &place.name("<u>labels.tsv"), "-o", &out]);
    let html = page(Path::new(&out));
    assert_eq!(html.matches("<script").count(), 1, "the page's own");
    for evil in ["<img", "onmouseover='", "<b>kind", "<i>same", "<u>", "\" onmouse"] {
        assert!(!html.contains(evil), "{evil}");
    }
    for text in [
        "&lt;script&gt;alert(1)&lt;/script&gt;0",
        "&lt;b&gt;kind",
        "&lt;i&gt;same",
        "&lt;u&gt;labels",
        "&quot; onmouseover=&#39;alert(2)&#39; x=&quot;&amp;&lt;img",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn report_tells_what_is_missing_and_replaces_nothing_unasked() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.path("run/report.html"));
    let (status, text) = sae_fails(["report", &data]);
    assert!(status == 2 && text.contains("not a run folder"), "{text}");
    std::fs::write(&out, "mine").unwrap();
    let (status, text) = sae_fails(["report", &run]);
    assert!(status == 2 && text.contains("--overwrite"), "{text}");
    assert_eq!(page(&out), "mine");
    let moved = place.name("moved.h5");
    std::fs::rename(&data, &moved).unwrap();
    let (status, text) = sae_fails(["report", &run, "--overwrite"]);
    assert!(status == 2 && text.contains("data.h5") && text.contains("no longer there"), "{text}");
    assert_eq!(page(&out), "mine");
    sae_ok(["report", &run, &moved, "--overwrite"]);
    assert!(page(&out).starts_with("<!DOCTYPE html>"));
    // The page is one of the run's files: training anew may replace it.
    std::fs::rename(&moved, &data).unwrap();
    place.train("run", &["--overwrite"]);
    assert!(!out.exists());
    std::fs::remove_file(place.path("run/model.safetensors")).unwrap();
    let (status, text) = sae_fails(["report", &run]);
    assert!(status == 2 && text.contains("--resume"), "{text}");
}

#[test]
fn an_id_is_marked_where_it_bears_the_label_of_its_latent() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, labels) = (place.name("run"), place.name("labels.tsv"));
    let kind = |id: &str| ["a", "b", ""][id[2..].parse::<usize>().unwrap() % 3];
    let ids: Vec<String> = (0..300).map(|n| format!("id{n:04}")).collect();
    let lines: String = ids.iter().map(|id| format!("{id}\t{}\n", kind(id))).collect();
    std::fs::write(&labels, "id\tkind\n".to_owned() + &lines).unwrap();
    sae_ok(["report", &run, "--labels", &labels]);
    let html = page(&place.path("run/report.html"));
    let args = ["features", &run, &place.name("data.h5"), "--labels", &labels, "--top=8", "--json"];
    let features: Value = serde_json::from_str(&sae_ok(args)).unwrap();
    let mut seen = [0; 3];
    for latent in features["latents"].as_array().unwrap().iter().filter(|l| !l["best"].is_null()) {
        let row = html.split(&format!("<tr id=\"latent-{}\">", latent["latent"])).nth(1).unwrap();
        let row = row.split("</tr>").next().unwrap();
        for top in latent["top"].as_array().unwrap() {
            let id = top["id"].as_str().unwrap();
            let item = row.split(&format!("<li>{id} ")).nth(1).unwrap().split("</li>").next().unwrap();
            let (at, want) = match kind(id) {
                "" => (0, "</span> ".to_owned()),
                borne if latent["best"]["label"] == borne => {
                    (1, "<span class=\"of\">&#10003;</span>".to_owned())
                }
                other => (2, format!("<span class=\"of\">{other}</span>")),
            };
            assert!(item.ends_with(&want), "{id}: {item}");
            seen[at] += 1;
        }
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
}

//! Every scenario in `scenarios/` must hold, with each node checked by a twin. One that is marked `# open` is known to fail:
//! it is listed, and it must really fail, or the mark has to go.

use ice_sim::plan::Plan;
use ice_sim::run::{Options, catch_assertions, run};
use std::path::PathBuf;

#[test]
fn scenarios() {
    catch_assertions();
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("the folder is there")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 20, "scenarios are missing");
    let only = std::env::var("SCENARIO").ok();
    let mut bad = Vec::new();
    for path in files {
        let name = path.file_stem().expect("named").to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        let plan = match Plan::parse(&text) {
            Ok(plan) => plan,
            Err(e) => {
                bad.push(format!("{name}: {e}"));
                continue;
            }
        };
        let repeat = format!("icesim run --plan sim/scenarios/{name}.txt");
        let outcome = run(&plan, Options { twins: true, ..Options::default() }, &repeat).expect("runs");
        match (&plan.setup.open, outcome.failure) {
            (None, None) => {}
            (Some(why), Some(f)) => println!("open: {name}: {why} ({}: {})", f.judge, f.text),
            (Some(_), None) => bad.push(format!("{name} holds now: take away its `# open`")),
            (None, Some(f)) => {
                bad.push(format!("{name} at {:.3} s: {}: {}\n    {repeat}", f.at.0 as f64 / 1e9, f.judge, f.text))
            }
        }
    }
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

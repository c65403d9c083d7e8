//! Tables for people, JSON for programs.

use serde_json::{Value, json};

use crate::footprint::Footprint;
use crate::measure::{METRICS, Sample};

/// The bare-metal round trip of peers, exec to exit, on a 2-core machine with software KVM, in milliseconds.
const KNOWN: [(&str, f64); 3] = [("Firecracker", 21.0), ("Cloud Hypervisor", 22.0), ("QEMU microvm", 64.0)];

/// All runs of one monitor.
pub struct Row {
    pub name: String,
    pub ours: bool,
    pub samples: Vec<Sample>,
}

impl Row {
    /// The value below which `percent` of the runs are.
    fn percentile(&self, metric: &str, percent: usize) -> Option<f64> {
        let mut values: Vec<f64> =
            self.samples.iter().filter_map(|sample| sample.get(metric)).copied().collect();
        values.sort_by(f64::total_cmp);
        values.get((values.len().checked_sub(1)? * percent + 50) / 100).copied()
    }

    fn json(&self) -> Value {
        let metric = |metric: &&str| {
            let p50 = self.percentile(metric, 50)?;
            let (p10, p90) = (self.percentile(metric, 10)?, self.percentile(metric, 90)?);
            Some((metric.to_string(), json!({ "p10_ms": p10, "p50_ms": p50, "p90_ms": p90 })))
        };
        let metrics: serde_json::Map<String, Value> = METRICS.iter().filter_map(metric).collect();
        json!({ "monitor": self.name, "runs": self.samples.len(), "metrics": metrics })
    }
}

/// Prints one table, with ratios to the best peer, and returns it as JSON.
pub fn table(title: &str, rows: &[Row], known: bool) -> Value {
    println!("\n{title}; milliseconds from exec, p50 (p10 to p90); cpu is the CPU time of all its processes");
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let used: Vec<&&str> =
        METRICS.iter().filter(|metric| rows.iter().any(|row| row.percentile(metric, 50).is_some())).collect();
    let cells = |cell: &dyn Fn(&str) -> String| {
        used.iter().map(|metric| format!(" {:>27}", cell(metric))).collect::<String>()
    };
    println!("{:width$}{}", "", cells(&|metric| metric.into()));
    for row in rows {
        let cell = |metric: &str| match row.percentile(metric, 50) {
            Some(p50) => format!(
                "{p50:.2} ({:.2} to {:.2})",
                row.percentile(metric, 10).unwrap_or(p50),
                row.percentile(metric, 90).unwrap_or(p50)
            ),
            None => "-".into(),
        };
        println!("{:width$}{}", row.name, cells(&cell));
    }
    ratios(rows, known);
    json!({ "title": title, "monitors": rows.iter().map(Row::json).collect::<Vec<_>>() })
}

/// Says how our time from exec to exit compares.
fn ratios(rows: &[Row], known: bool) {
    let Some(ours) = rows.iter().find(|row| row.ours).and_then(|row| row.percentile("exit", 50)) else {
        return;
    };
    let peers =
        rows.iter().filter(|row| !row.ours).filter_map(|row| Some((&row.name, row.percentile("exit", 50)?)));
    if let Some((name, best)) = peers.min_by(|a, b| a.1.total_cmp(&b.1)) {
        println!("exec to exit: {:.2} of the best peer here, {name} ({best:.1} ms)", ours / best);
    }
    for (name, time) in KNOWN.iter().filter(|_| known) {
        println!("exec to exit: {:.2} of {name}'s {time} ms, measured before on such a machine", ours / time);
    }
}

/// Prints what the monitors occupy.
pub fn footprints(rows: &[(String, Footprint)], binary: u64) -> Value {
    println!("\nKiB beside guest RAM while the bare-metal guest halts");
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    println!("{:width$}{:>10}{:>10}{:>10}{:>10}", "", "RSS", "PSS", "private", "threads");
    for (name, row) in rows {
        let (rss, pss, private) = (row.rss_kib, row.pss_kib, row.private_kib);
        println!("{name:width$}{rss:>10}{pss:>10}{private:>10}{:>10}", row.threads);
    }
    println!("rvmm's stripped binary: {:.2} MB", binary as f64 / 1e6);
    let memory: Vec<Value> =
        rows.iter().map(|(name, row)| json!({ "monitor": name, "footprint": row })).collect();
    json!({ "memory": memory, "binary_bytes": binary })
}

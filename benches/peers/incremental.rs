//! Incremental backups, and restores of what they leave: one row in 200 updated, a burst in a hot region, nothing changed; the tenth incremental
//! restored. And restores into a directory that is almost right already.
//!
//! WAL-RUS finds changes in two ways on PostgreSQL 15, the pages' LSNs and a map that its `wal-push` keeps, so it competes twice. pgBackRest
//! makes block incrementals, which its Debian release calls beta.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cluster::{Cluster, directory_of_postgres, give_to_postgres};
use crate::measure::{Cost, Invocation, bytes_below, measure, median_wall, summary};
use crate::tools::{Bench, Tool};

/// Incrementals before the restore, the first full backup not counted.
const CHAIN: usize = 10;

/// A tool with its repository and one way of finding changes.
struct Competitor<'a> {
    name: &'static str,
    tool: Tool,
    bench: &'a Bench,
    /// Beside what the tool is always given.
    environment: Vec<(&'static str, &'static str)>,
    options: Vec<&'static str>,
}

impl Competitor<'_> {
    fn call(&self, cluster: &Cluster, words: &[&str]) -> Invocation {
        let words = [self.options.as_slice(), words].concat();
        let mut call = self.bench.invocation(self.tool, cluster, &words);
        let more = self.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        call.environment.extend(more);
        call
    }

    fn backup(&self, cluster: &Cluster, kind: Kind) -> Invocation {
        let data = cluster.data.display().to_string();
        match (self.tool, kind) {
            (Tool::Walhold, Kind::Full) => self.call(cluster, &["backup-push", "--full"]),
            (Tool::Walhold, Kind::Incremental) => self.call(cluster, &["backup-push"]),
            (Tool::WalRus, Kind::Full) => self.call(cluster, &["backup-push", "--fast", "--full", &data]),
            (Tool::WalRus, Kind::Incremental) => self.call(cluster, &["backup-push", "--fast", &data]),
            (Tool::PgBackRest, Kind::Full) => self.call(cluster, &["--type=full", "backup"]),
            (Tool::PgBackRest, Kind::Incremental) => self.call(cluster, &["--type=incr", "backup"]),
        }
    }

    /// Stored bytes of backups, without WAL.
    fn stored(&self) -> u64 {
        let repository = self.bench.repository(self.tool);
        let folders: &[&str] = match self.tool {
            Tool::Walhold => &["main/packs", "main/backups"],
            Tool::WalRus => &["basebackups_005"],
            Tool::PgBackRest => &["backup"],
        };
        folders.iter().map(|folder| bytes_below(&repository.join(folder))).sum()
    }

    fn restore(&self, cluster: &Cluster, target: &Path, delta: Delta) -> Invocation {
        let path = target.display().to_string();
        let pg1 = format!("--pg1-path={path}");
        let words: Vec<&str> = match (self.tool, delta) {
            (Tool::Walhold, Delta::No) => vec!["restore", "--target-immediate", "--pgdata", &path],
            (Tool::Walhold, Delta::Yes) => {
                vec!["restore", "--delta", "--target-immediate", "--pgdata", &path]
            }
            (Tool::WalRus, _) => vec!["backup-fetch", &path, "LATEST"],
            (Tool::PgBackRest, Delta::No) => vec![&pg1, "restore"],
            (Tool::PgBackRest, Delta::Yes) => vec![&pg1, "--delta", "restore"],
        };
        let mut call = self.call(cluster, &words);
        if self.tool != Tool::Walhold {
            let quoted: Vec<String> = call.words.iter().map(|word| format!("'{word}'")).collect();
            call.words = vec!["sh".to_owned(), "-c".to_owned(), format!("{} && sync", quoted.join(" "))];
        }
        call
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Full,
    Incremental,
}

#[derive(Clone, Copy)]
enum Delta {
    No,
    Yes,
}

/// `BENCH_ONLY=incremental`.
pub fn incremental(bench: &Bench, cluster: &Cluster, rounds: usize) {
    let blocks = bench.fresh("incremental", cluster);
    blocks.allow_block_incrementals();
    let map = bench.fresh("wal map", cluster);
    let competitors = competitors(&blocks, &map);
    Archiving::begin(cluster, &competitors).take_turns(rounds);
}

fn competitors<'a>(blocks: &'a Bench, map: &'a Bench) -> Vec<Competitor<'a>> {
    // With more its names, which list the whole chain, are too long for a file; the next one is a full backup then.
    let delta = ("WALG_DELTA_MAX_STEPS", "7");
    vec![
        Competitor {
            name: "walhold",
            tool: Tool::Walhold,
            bench: blocks,
            environment: Vec::new(),
            options: Vec::new(),
        },
        Competitor {
            name: "WAL-RUS scan",
            tool: Tool::WalRus,
            bench: blocks,
            environment: vec![delta],
            options: Vec::new(),
        },
        Competitor {
            name: "WAL-RUS map",
            tool: Tool::WalRus,
            bench: map,
            environment: vec![delta, ("WALG_USE_WAL_DELTA", "true")],
            options: Vec::new(),
        },
        Competitor {
            name: "pgBackRest",
            tool: Tool::PgBackRest,
            bench: blocks,
            environment: Vec::new(),
            options: vec!["--beta"],
        },
    ]
}

/// Every competitor archives every segment, because each finds its changes there, but PostgreSQL has one archiver, and a backup of walhold waits for
/// its WAL: during a measurement the archiver works for the measured one alone. The others get the same files in the same order before the next
/// measurement begins, outside of it.
///
/// Everybody is given links in a folder of its own, because pg_wal may have lost the segment by then (without recycling its inode stays as it is),
/// and because WAL-RUS leaves files beside those it is given.
struct Archiving<'a> {
    cluster: &'a Cluster,
    competitors: &'a [Competitor<'a>],
    /// Links to what PostgreSQL has archived and not everybody has.
    links: PathBuf,
    /// Holds the number of the one that is measured, or nothing.
    measured: PathBuf,
}

impl<'a> Archiving<'a> {
    fn begin(cluster: &'a Cluster, competitors: &'a [Competitor<'a>]) -> Archiving<'a> {
        let folder = cluster.socket.join("archiving");
        directory_of_postgres(&folder);
        let archiving =
            Archiving { cluster, competitors, links: folder.join("wal"), measured: folder.join("measured") };
        directory_of_postgres(&archiving.links);
        for index in 0..competitors.len() {
            std::fs::write(archiving.delivered(index), "").expect("write what was delivered");
            give_to_postgres(&archiving.delivered(index));
        }
        archiving.work_for(None);
        let script = folder.join("archive");
        std::fs::write(&script, archiving.script()).expect("write the archiving script");
        cluster.sql("ALTER SYSTEM SET wal_recycle = off");
        cluster.archive_with(&format!("sh {} %p %f", script.display()));
        archiving
    }

    /// What PostgreSQL calls, with the file's path and name. It may call again for a file that was linked, or delivered, already.
    fn script(&self) -> String {
        let (links, measured) = (self.links.display(), self.measured.display());
        let mut text = format!(
            "link={links}/$2\n[ -e \"$link\" ] || ln \"$1\" \"$link\" || exit 1\ncase $(cat {measured}) in\n"
        );
        for (index, competitor) in self.competitors.iter().enumerate() {
            let command = competitor.bench.as_command(&self.delivery(competitor, "\"$link\""));
            let delivered = self.delivered(index);
            text += &format!("  {index}) {command} && echo \"$2\" >> {} ;;\n", delivered.display());
        }
        text + "esac\n"
    }

    /// The call that archives a file.
    fn delivery(&self, competitor: &Competitor<'_>, path: &str) -> Invocation {
        let verb = if competitor.tool == Tool::PgBackRest { "archive-push" } else { "wal-push" };
        competitor.call(self.cluster, &[verb, path])
    }

    /// Holds the names that a competitor was given by the archiver.
    fn delivered(&self, index: usize) -> PathBuf {
        self.measured.with_file_name(format!("delivered-{index}"))
    }

    /// Takes effect with the archiver's next call.
    fn work_for(&self, index: Option<usize>) {
        let text = index.map(|index| index.to_string()).unwrap_or_default();
        std::fs::write(&self.measured, text).expect("write who is measured");
    }

    /// Waits until everything that was written is archived everywhere.
    fn drain(&self) {
        self.work_for(None);
        self.cluster.sql("CHECKPOINT");
        let last = self.cluster.sql("SELECT pg_walfile_name(pg_switch_wal())");
        let archived = format!("SELECT coalesce(last_archived_wal >= '{last}', false) FROM pg_stat_archiver");
        let begun = std::time::Instant::now();
        while self.cluster.sql(&archived) != "t" {
            assert!(begun.elapsed().as_secs() < 600, "{last} was not archived");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        self.deliver();
    }

    /// Gives every competitor what it has not been given yet, in order; then the links go.
    fn deliver(&self) {
        let linked = std::fs::read_dir(&self.links).expect("list the links").flatten();
        let mut names: Vec<String> = linked
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_wal(name))
            .collect();
        names.sort();
        for (index, competitor) in self.competitors.iter().enumerate() {
            let path = self.delivered(index);
            let delivered = std::fs::read_to_string(&path).expect("read what was delivered");
            for name in names.iter().filter(|name| !delivered.lines().any(|line| line == *name)) {
                let link = self.links.join(name).display().to_string();
                measure(&self.delivery(competitor, &link));
            }
            std::fs::write(&path, "").expect("write what was delivered");
        }
        for name in names {
            std::fs::remove_file(self.links.join(name)).expect("remove a link");
        }
    }

    /// One backup of each competitor: cost and growth.
    fn backups(&self, kind: Kind) -> Vec<(Cost, u64)> {
        let one = |(index, competitor): (usize, &Competitor<'_>)| {
            self.drain();
            // What others wrote is not this one's to wait for.
            nix::unistd::sync();
            let before = competitor.stored();
            self.work_for(Some(index));
            let cost = measure(&competitor.backup(self.cluster, kind));
            (cost, competitor.stored() - before)
        };
        self.competitors.iter().enumerate().map(one).collect()
    }

    fn take_turns(&self, rounds: usize) {
        println!("\n## Incremental backups, each kind after a full one\n");
        for (competitor, (cost, grown)) in self.competitors.iter().zip(self.backups(Kind::Full)) {
            println!(
                "full    {:<13} {:>8.1} ms, {:>8.2} MB",
                competitor.name,
                cost.wall * 1e3,
                grown as f64 / 1e6
            );
        }
        let mut step = 0;
        let scenarios: [(&str, fn(&Cluster, usize)); 3] =
            [("1 row in 200", one_in_200), ("hot region", hot_region), ("nothing", |_, _| ())];
        for (what, change) in scenarios {
            let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); self.competitors.len()];
            let mut grown: Vec<Vec<u64>> = vec![Vec::new(); self.competitors.len()];
            if step > 0 {
                self.backups(Kind::Full);
            }
            for _ in 0..rounds {
                step += 1;
                change(self.cluster, step);
                for (index, (cost, bytes)) in self.backups(Kind::Incremental).into_iter().enumerate() {
                    costs[index].push(cost);
                    grown[index].push(bytes);
                }
            }
            let own = (median_wall(&costs[0]), median(&grown[0]));
            for (index, competitor) in self.competitors.iter().enumerate() {
                let bytes = median(&grown[index]);
                let rounds: Vec<String> =
                    grown[index].iter().map(|bytes| format!("{:.3}", *bytes as f64 / 1e6)).collect();
                println!(
                    "{what:<13}{:<13}{}  grows {:>9.3} MB ({})  walhold/this {:.2} time, {:.2} bytes",
                    competitor.name,
                    summary(&costs[index]),
                    bytes as f64 / 1e6,
                    rounds.join(", "),
                    own.0 / median_wall(&costs[index]),
                    own.1 as f64 / bytes.max(1) as f64
                );
            }
        }
        println!(
            "server's own: start and stop of a backup, fast checkpoint: {:.0} ms",
            self.server_alone(rounds) * 1e3
        );
        self.backups(Kind::Full);
        for _ in 0..CHAIN {
            step += 1;
            one_in_200(self.cluster, step);
            self.backups(Kind::Incremental);
        }
        self.restores(&format!("restore of incremental {CHAIN}"), rounds);
    }

    /// What `pg_backup_start` and `pg_backup_stop` take without a tool in between.
    fn server_alone(&self, rounds: usize) -> f64 {
        let mut walls: Vec<f64> = (0..rounds)
            .map(|_| {
                self.drain();
                let begun = std::time::Instant::now();
                self.cluster.sql("SELECT pg_backup_start('bench', true); SELECT pg_backup_stop(false)");
                begun.elapsed().as_secs_f64()
            })
            .collect();
        walls.sort_by(f64::total_cmp);
        walls[walls.len() / 2]
    }

    fn restores(&self, what: &str, rounds: usize) {
        let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); self.competitors.len()];
        for round in 0..rounds {
            for turn in 0..self.competitors.len() {
                let index = (round + turn) % self.competitors.len();
                let target = self.competitors[index].bench.root.join(format!("incremental-{index}-{round}"));
                directory_of_postgres(&target);
                nix::unistd::sync();
                costs[index].push(measure(&self.competitors[index].restore(
                    self.cluster,
                    &target,
                    Delta::No,
                )));
            }
        }
        report(what, self.competitors, &costs);
    }
}

/// A name that PostgreSQL gives to what it archives: segments and backup histories. WAL-RUS's delta files lie beside them.
fn is_wal(name: &str) -> bool {
    let (segment, rest) = name.split_at_checked(24).unwrap_or((name, ""));
    let is_segment = segment.len() == 24 && segment.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_segment && (rest.is_empty() || rest.ends_with(".backup"))
}

fn report(what: &str, competitors: &[Competitor<'_>], costs: &[Vec<Cost>]) {
    let own = median_wall(&costs[0]);
    for (competitor, costs) in competitors.iter().zip(costs) {
        println!(
            "{what}: {:<13}{}  walhold/this {:.2}",
            competitor.name,
            summary(costs),
            own / median_wall(costs)
        );
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn one_in_200(cluster: &Cluster, step: usize) {
    cluster.sql(&format!("UPDATE events SET amount = amount + 1 WHERE id % 200 = {}", step % 200));
}

/// The newest hundredth of the rows, again and again.
fn hot_region(cluster: &Cluster, _: usize) {
    for _ in 0..5 {
        cluster.sql("UPDATE events SET amount = amount + 1 WHERE id > (SELECT max(id) * 0.99 FROM events)");
    }
}

/// `BENCH_ONLY=delta`: `restore --delta` over a directory that is right, and over one of which 1 % of the pages differ.
pub fn delta(bench: &Bench, cluster: &Cluster, rounds: usize) {
    let blocks = bench.fresh("delta", cluster);
    blocks.allow_block_incrementals();
    let all = competitors(&blocks, &blocks);
    let competitors: Vec<Competitor<'_>> = all.into_iter().filter(|one| one.tool != Tool::WalRus).collect();
    let archiving = Archiving::begin(cluster, &competitors);
    archiving.backups(Kind::Full);
    println!("\n## Restore over an existing directory\n");
    let target = |index: usize| blocks.root.join(format!("delta-{index}"));
    for (index, competitor) in competitors.iter().enumerate() {
        directory_of_postgres(&target(index));
        measure(&competitor.restore(cluster, &target(index), Delta::No));
    }
    for (what, changed) in [("nothing to do", 0), ("1 % of the pages", 100)] {
        let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); competitors.len()];
        for round in 0..rounds {
            for turn in 0..competitors.len() {
                let index = (round + turn) % competitors.len();
                if changed > 0 {
                    change_pages(&target(index).join("base"), changed, round as u64);
                }
                nix::unistd::sync();
                costs[index].push(measure(&competitors[index].restore(cluster, &target(index), Delta::Yes)));
            }
        }
        report(what, &competitors, &costs);
    }
}

/// Spoils one page in `every` of the large files, each round others.
fn change_pages(folder: &Path, every: u64, round: u64) {
    for entry in std::fs::read_dir(folder).expect("list a directory").flatten() {
        let metadata = entry.metadata().expect("look at a file");
        if metadata.is_dir() {
            change_pages(&entry.path(), every, round);
        } else if metadata.len() > 1 << 20 {
            let file = File::options().write(true).open(entry.path()).expect("open a data file");
            for page in ((round % every)..metadata.len() / 8192).step_by(every as usize) {
                file.write_all_at(b"spoiled", page * 8192 + 4000).expect("spoil a page");
            }
        }
    }
}

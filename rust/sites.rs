//! Sites: the places in a pass that can be looked at, each with a readable path.

use crate::error::{Error, Result, room};

/// A place in a pass: an index into the paths of the compiled tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u32);

/// The paths of a tree's sites, in the order of execution.
#[derive(Debug, Default)]
pub struct Sites {
    paths: Vec<String>,
}

impl Sites {
    pub fn add(&mut self, path: String) -> SiteId {
        self.paths.push(path);
        SiteId((self.paths.len() - 1) as u32)
    }

    pub fn path(&self, site: SiteId) -> &str {
        &self.paths[site.0 as usize]
    }

    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// The sites that a pattern names: a path in which a part `*` stands for any one part.
    ///
    /// Errors: a pattern that names no site.
    pub fn matching(&self, pattern: &str) -> Result<Vec<SiteId>> {
        let wanted: Vec<&str> = pattern.split('.').collect();
        let matches = |path: &str| {
            path.split('.').count() == wanted.len()
                && path.split('.').zip(&wanted).all(|(part, want)| *want == "*" || *want == part)
        };
        let found: Vec<SiteId> = (0u32..)
            .zip(&self.paths)
            .filter(|(_, path)| matches(path))
            .map(|(index, _)| SiteId(index))
            .collect();
        if found.is_empty() {
            return Err(Error::argument(
                "capture",
                format!("{pattern:?}, which names no site"),
                "a path such as \"layers.0.attn.probs\" or \"layers.*\" (Model.sites lists them)",
            ));
        }
        Ok(found)
    }
}

/// What looks at sites during a pass. A site that a hook wants runs unfused, with the same bits.
pub trait Hook: Send {
    fn wants(&self, site: SiteId) -> bool;

    /// Sees the values of a wanted site, row-major in `shape`. Attention's scores and probabilities
    /// come a sequence at a time, `[heads, rows, keys]`; everything else is `[rows, width]`.
    ///
    /// Errors: what the hook has no memory for.
    fn visit(&mut self, site: SiteId, shape: &[usize], values: &[f32]) -> Result<()>;
}

/// A hook that keeps what it sees.
#[derive(Default)]
pub struct Capture {
    wanted: Vec<bool>,
    pub seen: Vec<Captured>,
}

/// The values of a site, row-major in `shape`.
pub struct Captured {
    pub site: SiteId,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Capture {
    /// Captures the sites that any of the patterns names.
    pub fn new(sites: &Sites, patterns: &[String]) -> Result<Self> {
        let mut wanted = vec![false; sites.paths.len()];
        for pattern in patterns {
            for site in sites.matching(pattern)? {
                wanted[site.0 as usize] = true;
            }
        }
        Ok(Capture { wanted, seen: Vec::new() })
    }
}

impl Hook for Capture {
    fn wants(&self, site: SiteId) -> bool {
        self.wanted[site.0 as usize]
    }

    fn visit(&mut self, site: SiteId, shape: &[usize], values: &[f32]) -> Result<()> {
        let mut kept = room(values.len(), "what is captured")?;
        kept.extend_from_slice(values);
        self.seen.push(Captured { site, shape: shape.to_vec(), values: kept });
        Ok(())
    }
}

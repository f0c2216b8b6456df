//! Multi-head attention over the cache.

use crate::blocks::builder::{Builder, RopeId};
use crate::blocks::linear::Linear;
use crate::blocks::pass::{Memory, Pass, Rows, Segment};
use crate::blocks::spec::AttentionSpec;
use crate::cache::KvShape;
use crate::error::{Result, room};
use crate::interrupt;
use crate::kernels::attention::{
    HeadRows, HeadRowsMut, Heads, Item, KvDtype, Mask, Span, attend, attend_backward, attend_rows,
    attention_probs,
};
use crate::kernels::{rope, rope_backward};
use crate::sites::{Captured, SiteId};

/// `softmax(q kᵀ · scale) v`, then a projection (Vaswani et al. 2017); query heads share the heads of keys
/// and values in groups (Ainslie et al. 2023).
pub struct Attention {
    /// Queries, keys and values, in one product.
    qkv: Linear,
    output: Linear,
    heads: Heads,
    causal: bool,
    /// The turns of queries and keys, and how many entries of a head turn.
    rope: Option<(RopeId, usize)>,
    /// The layer of the cache.
    layer: usize,
    /// Nothing after this attention looks at other rows than the wanted ones.
    narrows: bool,
    sites: AttentionSites,
}

struct AttentionSites {
    q: SiteId,
    k: SiteId,
    v: SiteId,
    scores: SiteId,
    probs: SiteId,
    heads: SiteId,
    output: SiteId,
}

impl Attention {
    pub fn compile(spec: &AttentionSpec, width: usize, builder: &mut Builder) -> Result<Self> {
        let heads = builder.size("heads", spec.heads)?;
        let kv_heads = builder.size("kv_heads", spec.kv_heads.unwrap_or(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(builder.wrong("kv_heads", kv_heads, format!("a divisor of heads = {heads}")));
        }
        if spec.head_dim.is_none() && !width.is_multiple_of(heads) {
            return Err(builder.wrong(
                "heads",
                heads,
                format!("a divisor of the width, {width}, or a head_dim"),
            ));
        }
        let head_dim = builder.size("head_dim", spec.head_dim.unwrap_or(width / heads))?;
        let inner = builder.size("heads", heads.saturating_mul(head_dim))?;
        let kv_inner = kv_heads * head_dim;
        let rope = match &spec.rope {
            None => None,
            Some(rope) if 2 * rope.frequencies.len() <= head_dim => {
                Some((builder.rope(rope), 2 * rope.frequencies.len()))
            }
            Some(rope) => {
                let found = format!("{} frequencies", rope.frequencies.len());
                return Err(builder.wrong("rope", found, format!("at most {} for a head", head_dim / 2)));
            }
        };
        let qkv =
            Linear::compile(&[("q", inner), ("k", kv_inner), ("v", kv_inner)], spec.bias, width, builder)?;
        let output = Linear::compile(&[("o", width)], spec.out_bias.unwrap_or(spec.bias), inner, builder)?;
        builder.kv.push(KvShape { heads: kv_heads, head_dim });
        Ok(Attention {
            qkv,
            output,
            heads: Heads {
                heads,
                kv_heads,
                head_dim,
                scale: spec.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            },
            causal: spec.causal,
            rope,
            layer: builder.kv.len() - 1,
            narrows: false,
            sites: AttentionSites {
                q: builder.site("q"),
                k: builder.site("k"),
                v: builder.site("v"),
                scores: builder.site("scores"),
                probs: builder.site("probs"),
                heads: builder.site("heads"),
                output: builder.site(""),
            },
        })
    }

    /// Lets passes go on with only the wanted rows from here on: for the last attention of a tree.
    pub fn narrow_if_it_can(&mut self) {
        self.narrows = self.qkv.splits_at(1);
    }

    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        if let Memory::Tape(_) = pass.memory {
            return self.forward_taped(pass, x);
        }
        let (inner, kv_inner) = (self.qkv.start(1), self.qkv.start(2) - self.qkv.start(1));
        let every = all_rows(x);
        let context = if self.narrows && pass.may_narrow() {
            let mut kv = self.qkv.forward_outputs(pass, x, 1..3);
            self.turn(pass, &mut kv, 0, self.heads.kv_heads, &every);
            self.store(pass, &kv, 0);
            pass.give(kv);
            let wanted = pass.select_wanted(x);
            let mut q = self.qkv.forward_outputs(pass, &wanted, 0..1);
            pass.give(wanted);
            let rows: Vec<u32> = pass.wanted().iter().map(|&row| row as u32).collect();
            self.turn(pass, &mut q, 0, self.heads.heads, &rows);
            pass.narrow();
            self.attend(pass, q)?
        } else {
            let mut qkv = self.qkv.forward(pass, x);
            self.turn(pass, &mut qkv, 0, self.heads.heads, &every);
            self.turn(pass, &mut qkv, inner, self.heads.kv_heads, &every);
            for (site, start, width) in [
                (self.sites.q, 0, inner),
                (self.sites.k, inner, kv_inner),
                (self.sites.v, inner + kv_inner, kv_inner),
            ] {
                pass.site_of_columns(site, &qkv, start, width)?;
            }
            self.store(pass, &qkv, inner);
            self.attend(pass, qkv)?
        };
        pass.site(self.sites.heads, &context)?;
        let y = self.output.forward(pass, &context);
        pass.give(context);
        pass.site(self.sites.output, &y)?;
        Ok(y)
    }

    /// Turns the heads that begin at column `start`; row `i` of `x` is row `rows[i]` of the pass.
    fn turn(&self, pass: &Pass<'_>, x: &mut Rows, start: usize, heads: usize, rows: &[u32]) {
        let Some((id, rotated)) = self.rope else { return };
        let turns = pass.turns(id);
        let head_dim = self.heads.head_dim;
        rope(&mut x.values, x.width, start, heads, head_dim, rotated, &turns.cos, &turns.sin, rows);
    }

    /// As [`Attention::forward`], with the same bits, over whole sequences without a cache.
    fn forward_taped(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut qkv = self.qkv.forward(pass, x);
        interrupt::check()?;
        self.turn(pass, &mut qkv, 0, self.heads.heads, &all_rows(x));
        self.turn(pass, &mut qkv, self.qkv.start(1), self.heads.kv_heads, &all_rows(x));
        let mut context = pass.take(x.rows, self.heads.heads * self.heads.head_dim);
        let mut log_sums = pass.take(x.rows, self.heads.heads);
        let [q, k, v] = self.head_rows(&qkv);
        let spans = spans(&pass.segments);
        attend_rows(self.heads, self.mask(), &spans, q, k, v, &mut context.values, &mut log_sums.values);
        let y = self.output.forward(pass, &context);
        for kept in [qkv, context, log_sums] {
            pass.keep(kept);
        }
        Ok(y)
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
        let (log_sums, context, qkv) = (pass.recall(), pass.recall(), pass.recall());
        let dcontext = self.output.backward(pass, &context, dy);
        interrupt::check()?;
        let mut dqkv = pass.take(qkv.rows, qkv.width);
        let [inner, k_end, v_end] = [1, 2, 3].map(|index| self.qkv.start(index));
        attend_backward(
            self.heads,
            self.mask(),
            &spans(&pass.segments),
            self.head_rows(&qkv),
            &context.values,
            &log_sums.values,
            &dcontext.values,
            HeadRowsMut::columns(&mut dqkv.values, qkv.width, [inner, k_end - inner, v_end - k_end]),
        );
        for done in [log_sums, context, qkv, dcontext] {
            pass.give(done);
        }
        self.turn_back(pass, &mut dqkv, 0, self.heads.heads);
        self.turn_back(pass, &mut dqkv, inner, self.heads.kv_heads);
        let dx = self.qkv.backward(pass, x, &dqkv);
        pass.give(dqkv);
        Ok(dx)
    }

    /// The queries, keys and values that lie side by side.
    fn head_rows<'a>(&self, qkv: &'a Rows) -> [HeadRows<'a>; 3] {
        [0, 1, 2].map(|index| HeadRows {
            data: &qkv.values,
            stride: qkv.width,
            offset: self.qkv.start(index),
        })
    }

    fn mask(&self) -> Mask {
        Mask { causal: self.causal, window: None }
    }

    /// The gradient at what [`Attention::turn`] turned, of all rows.
    fn turn_back(&self, pass: &Pass<'_>, dx: &mut Rows, start: usize, heads: usize) {
        let Some((id, rotated)) = self.rope else { return };
        let turns = pass.turns(id);
        let (head_dim, rows) = (self.heads.head_dim, all_rows(dx));
        rope_backward(
            &mut dx.values,
            dx.width,
            start,
            heads,
            head_dim,
            rotated,
            &turns.cos,
            &turns.sin,
            &rows,
        );
    }

    /// Writes the keys, which begin at column `start`, and the values after them into the cache.
    fn store(&self, pass: &mut Pass<'_>, x: &Rows, start: usize) {
        let Memory::Cache(cache) = &mut pass.memory else { unreachable!("a tape has no cache") };
        let width = self.heads.kv_heads * self.heads.head_dim;
        let [keys, values] =
            [start, start + width].map(|offset| HeadRows { data: &x.values, stride: x.width, offset });
        let rows = pass.segments.iter().map(|s| (s.seq, s.first_position, s.rows.clone()));
        cache.write(self.layer, rows, keys, values);
    }

    /// `[rows, heads · head_dim]` of what the queries, which begin each row of `q`, attend to.
    fn attend(&self, pass: &mut Pass<'_>, q: Rows) -> Result<Rows> {
        let mut context = pass.take(q.rows, self.heads.heads * self.heads.head_dim);
        let queries = HeadRows { data: &q.values, stride: q.width, offset: 0 };
        let captured = {
            let Memory::Cache(cache) = &pass.memory else { unreachable!("a tape has no cache") };
            let mut blocks = Vec::new();
            let mut ends = Vec::with_capacity(pass.segments.len());
            for segment in &pass.segments {
                blocks.extend(cache.layer(segment.seq, self.layer));
                ends.push(blocks.len());
            }
            let mut first = 0;
            let mut items = Vec::with_capacity(ends.len());
            for (segment, end) in pass.segments.iter().zip(ends) {
                items.push(self.item(segment, &blocks[first..end]));
                first = end;
            }
            attend(self.heads, cache.dtype(), &items, queries, &mut context.values);
            self.capture(pass, cache.dtype(), &items, queries)?
        };
        for seen in captured {
            pass.site_of(seen.site, &seen.shape, &seen.values)?;
        }
        pass.give(q);
        Ok(context)
    }

    fn item<'a>(&self, segment: &Segment, blocks: &'a [&'a [u8]]) -> Item<'a> {
        Item {
            row: segment.rows.start,
            rows: segment.rows.len(),
            first_position: segment.first_position,
            blocks,
            kv_len: segment.first_position + segment.rows.len(),
            causal: self.causal,
            window: None,
            bias: None,
        }
    }

    /// Scores and probabilities of each sequence, `[heads, rows, keys]`, if a hook wants them.
    fn capture(
        &self,
        pass: &Pass<'_>,
        dtype: KvDtype,
        items: &[Item<'_>],
        queries: HeadRows<'_>,
    ) -> Result<Vec<Captured>> {
        let mut captured = Vec::new();
        for (site, is_scores) in [(self.sites.scores, true), (self.sites.probs, false)] {
            if !pass.wants(site) {
                continue;
            }
            for item in items {
                let shape = [self.heads.heads, item.rows, item.kv_len];
                let len = shape.iter().product();
                let mut values = room(len, "what is captured")?;
                values.resize(len, 0.0);
                let (scores, probs) =
                    if is_scores { (Some(&mut values[..]), None) } else { (None, Some(&mut values[..])) };
                attention_probs(self.heads, dtype, item, queries, scores, probs);
                captured.push(Captured { site, shape: shape.to_vec(), values });
            }
        }
        Ok(captured)
    }
}

fn all_rows(x: &Rows) -> Vec<u32> {
    (0..x.rows as u32).collect()
}

/// Every sequence sees itself.
fn spans(segments: &[Segment]) -> Vec<Span> {
    segments.iter().map(|s| Span { queries: s.rows.clone(), keys: s.rows.clone() }).collect()
}

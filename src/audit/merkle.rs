//! The Merkle tree of RFC 6962: growing it, proofs from it, and their verification. Mathematics only: no files, no keys.
//!
//! ```text
//!            root of 7                 A node is named by its level and its index in that level: level 0 holds the
//!         ┌──────┴──────┐              leaves, level l the roots of 2^l leaves. A proof needs only such nodes, wherever
//!      (2,0)          ┌─┴─┐            they are kept: [`Nodes`] hands them out.
//!     ┌──┴──┐      (1,2) (0,6)
//!   (1,0) (1,1)    ┌─┴─┐               The frontier of a tree are the roots of its full subtrees, here (2,0), (1,2)
//!   0   1 2   3    4   5   6           and (0,6): enough to add leaves and to tell the root, in 2 KB for any log.
//! ```

use aws_lc_rs::digest;

/// A hash of the tree: SHA-256.
pub type Hash = [u8; 32];

/// The most hashes a proof can have: a tree has fewer than 2^64 leaves.
pub const MAX_PROOF: usize = 64;

/// Hash of an entry as a leaf: SHA-256(0x00 ‖ entry).
pub fn leaf_hash(entry: &[u8]) -> Hash {
    hash(&[&[0], entry])
}

/// Hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

/// Root of the tree without leaves.
pub fn empty_root() -> Hash {
    hash(&[])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// What is needed of a tree to add leaves and to tell its root.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees, the largest first: one for each bit of `size`.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.carry(leaf, self.size);
        self.size += 1;
    }

    /// Adds 2^`level` leaves by their root. False, and nothing is added, if the tree's size is no multiple of that: then
    /// they are no node of it.
    #[must_use]
    pub fn push_node(&mut self, level: u32, root: Hash) -> bool {
        let Some(count) = 1_u64.checked_shl(level).filter(|count| self.size.is_multiple_of(*count)) else {
            return false;
        };
        self.carry(root, self.size >> level);
        self.size += count;
        true
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(smallest) = peaks.next() else { return empty_root() };
        peaks.fold(*smallest, |right, left| node_hash(left, &right))
    }

    /// As in binary addition: every low bit that is set is a full subtree that the new one completes.
    fn carry(&mut self, mut root: Hash, mut bits: u64) {
        while bits & 1 == 1
            && let Some(left) = self.peaks.pop()
        {
            root = node_hash(&left, &root);
            bits >>= 1;
        }
        self.peaks.push(root);
    }
}

/// Where the nodes of a tree come from.
pub trait Nodes {
    /// Why a node can't be had.
    type Error;

    /// The root of the leaves `index × 2^level` to `(index + 1) × 2^level`, all of which are in the tree.
    fn node(&mut self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// The root of the first `size` leaves.
pub fn root<N: Nodes>(nodes: &mut N, size: u64) -> Result<Hash, N::Error> {
    if size == 0 { Ok(empty_root()) } else { range(nodes, 0, size) }
}

/// The proof that leaf `index` is in the tree of `size` leaves: the siblings on its way to the root, from the leaf
/// upwards. Empty if the leaf is not in that tree.
pub fn prove_inclusion<N: Nodes>(nodes: &mut N, index: u64, size: u64) -> Result<Vec<Hash>, N::Error> {
    let mut proof = Vec::new();
    if index >= size {
        return Ok(proof);
    }
    // From the root downwards: which half holds the leaf?
    let (mut start, mut len) = (0, size);
    while len > 1 {
        let left = split(len);
        if index - start < left {
            proof.push(range(nodes, start + left, len - left)?);
            len = left;
        } else {
            proof.push(range(nodes, start, left)?);
            (start, len) = (start + left, len - left);
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of `old` leaves is the beginning of the tree of `new` leaves. Empty if they are one and the
/// same, if `old` is 0, or larger than `new`.
pub fn prove_consistency<N: Nodes>(nodes: &mut N, old: u64, new: u64) -> Result<Vec<Hash>, N::Error> {
    let mut proof = Vec::new();
    if old == 0 || old >= new {
        return Ok(proof);
    }
    let (mut start, mut len) = (0, new);
    // Down to the subtree that ends where the old tree ends.
    while old - start != len {
        let left = split(len);
        if old - start <= left {
            proof.push(range(nodes, start + left, len - left)?);
            len = left;
        } else {
            proof.push(range(nodes, start, left)?);
            (start, len) = (start + left, len - left);
        }
    }
    // A subtree that is the whole old tree needs no saying: who asks has its root.
    if start > 0 {
        proof.push(range(nodes, start, len)?);
    }
    proof.reverse();
    Ok(proof)
}

/// The root that a tree of `size` leaves must have for `proof` to prove `leaf` at `index`; `None` if no tree of that size
/// has such a proof. The proof holds if that root is the one signed.
pub fn root_of_inclusion(proof: &[Hash], index: u64, size: u64, leaf: Hash) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node, mut last, mut root) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            root = node_hash(sibling, &root);
            // A right edge without siblings goes up without hashing.
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            root = node_hash(&root, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    (last == 0).then_some(root)
}

/// True if `proof` proves that the tree of `old` leaves with `old_root` is the beginning of the one of `new` leaves with
/// `new_root`.
pub fn verify_consistency(proof: &[Hash], old: u64, old_root: &Hash, new: u64, new_root: &Hash) -> bool {
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    if old > new {
        return false;
    }
    let mut proof = proof.iter();
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        (node, last) = (node >> 1, last >> 1);
    }
    // A full old tree is itself the first node; any other proof says it.
    let first = if old.is_power_of_two() { Some(old_root) } else { proof.next() };
    let Some(first) = first else { return false };
    let (mut of_old, mut of_new) = (*first, *first);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            (of_old, of_new) = (node_hash(sibling, &of_old), node_hash(sibling, &of_new));
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            of_new = node_hash(&of_new, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && of_old == *old_root && of_new == *new_root
}

/// The root of the leaves from `start` on, `len` of them, one at least. `start` is where a subtree of that size can begin.
fn range<N: Nodes>(nodes: &mut N, start: u64, len: u64) -> Result<Hash, N::Error> {
    // The full subtrees from the left, largest first, then folded from the right: as a frontier.
    let mut peaks = Vec::new();
    let (mut at, mut left) = (start, len);
    while left > 0 {
        let level = left.ilog2();
        peaks.push(nodes.node(level, at >> level)?);
        (at, left) = (at + (1 << level), left - (1 << level));
    }
    let mut peaks = peaks.into_iter().rev();
    let smallest = peaks.next().unwrap_or_else(empty_root);
    Ok(peaks.fold(smallest, |right, left| node_hash(&left, &right)))
}

/// Leaves of the left half: the largest power of two below `len`, which is above 1.
fn split(len: u64) -> u64 {
    1 << (len - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// All leaves; nodes by RFC 6962's own recursion.
    struct Leaves(Vec<Hash>);

    impl Leaves {
        fn new(count: usize) -> Self {
            Self((0..count).map(|number| leaf_hash(&number.to_be_bytes())).collect())
        }
    }

    impl Nodes for Leaves {
        type Error = Infallible;

        fn node(&mut self, level: u32, index: u64) -> Result<Hash, Infallible> {
            let start = usize::try_from(index << level).unwrap();
            Ok(mth(&self.0[start..start + (1 << level)]))
        }
    }

    /// MTH of RFC 6962 §2.1.
    fn mth(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(usize::try_from(split(leaves.len() as u64)).unwrap());
                node_hash(&mth(left), &mth(right))
            }
        }
    }

    /// Roots of the trees with 0 to 8 leaves that every implementation of RFC 6962 is tried with.
    #[test]
    fn known_roots() {
        let leaves =
            ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::default();
        assert_eq!(hex::encode(frontier.root()), roots[0]);
        for (leaf, root) in leaves.iter().zip(&roots[1..]) {
            frontier.push(leaf_hash(&hex::decode(leaf).unwrap()));
            assert_eq!(hex::encode(frontier.root()), *root);
        }
    }

    #[test]
    fn every_proof_of_small_trees_holds_and_no_other() {
        let mut leaves = Leaves::new(34);
        for size in 1..=34_u64 {
            let top = root(&mut leaves, size).unwrap();
            assert_eq!(top, mth(&leaves.0[..usize::try_from(size).unwrap()]));
            for index in 0..size {
                let proof = prove_inclusion(&mut leaves, index, size).unwrap();
                let leaf = leaves.0[usize::try_from(index).unwrap()];
                assert_eq!(root_of_inclusion(&proof, index, size, leaf), Some(top));
                for other in (0..size).filter(|other| *other != index) {
                    assert_ne!(root_of_inclusion(&proof, other, size, leaf), Some(top), "{index} of {size} as {other}");
                }
            }
            for old in 0..=size {
                let old_root = root(&mut leaves, old).unwrap();
                let proof = prove_consistency(&mut leaves, old, size).unwrap();
                assert!(verify_consistency(&proof, old, &old_root, size, &top), "{old} to {size}");
                assert!(!verify_consistency(&proof, old, &[1; 32], size, &top));
                // Every tree has grown out of the empty one.
                assert_eq!(verify_consistency(&proof, old, &old_root, size, &[1; 32]), old == 0);
                for at in 0..proof.len() {
                    let mut bad = proof.clone();
                    bad[at][7] ^= 1;
                    assert!(!verify_consistency(&bad, old, &old_root, size, &top), "{old} to {size}, hash {at}");
                }
                let longer = [proof.as_slice(), &[[0; 32]]].concat();
                assert!(!verify_consistency(&longer, old, &old_root, size, &top));
            }
        }
    }

    #[test]
    fn a_frontier_may_be_built_from_subtrees() {
        let mut leaves = Leaves::new(300);
        let mut frontier = Frontier::default();
        assert!(frontier.push_node(8, leaves.node(8, 0).unwrap()));
        assert!(!frontier.push_node(9, [0; 32]), "256 leaves are no multiple of 512");
        for leaf in &leaves.0[256..] {
            frontier.push(*leaf);
        }
        assert_eq!((frontier.size(), frontier.root()), (300, mth(&leaves.0)));
    }

    proptest! {
        #[test]
        fn proofs_of_large_trees(size in 1_u64..3000, index: u64, old: u64, flip: usize) {
            let (index, old) = (index % size, old % size + 1);
            let mut leaves = Leaves::new(usize::try_from(size).unwrap());
            let (top, before) = (root(&mut leaves, size).unwrap(), root(&mut leaves, old).unwrap());
            let leaf = leaves.0[usize::try_from(index).unwrap()];
            let mut proof = prove_inclusion(&mut leaves, index, size).unwrap();
            prop_assert_eq!(root_of_inclusion(&proof, index, size, leaf), Some(top));
            prop_assert_ne!(root_of_inclusion(&proof, index, size, [9; 32]), Some(top));
            if !proof.is_empty() {
                let at = flip % proof.len();
                proof[at][3] ^= 0x40;
                prop_assert_ne!(root_of_inclusion(&proof, index, size, leaf), Some(top));
            }
            let proof = prove_consistency(&mut leaves, old, size).unwrap();
            prop_assert!(verify_consistency(&proof, old, &before, size, &top));
        }
    }
}

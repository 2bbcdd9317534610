//! Folds residual sums into the matrix product before them: the product is added to the residual where it lies.

use super::{BufferId, Step, fuse::Draft};

/// Turns `m = x · W; y = r + m` into `r += x · W` wherever `m` has no other reader, `r` dies at the sum, and nothing
/// between the two steps reads `r`.
pub(super) fn fold(draft: &mut Draft) {
    let mut at = 0;
    while at < draft.steps.len() {
        let Step::Add { a, b, out } = draft.steps[at] else {
            at += 1;
            continue;
        };
        match fold_one(draft, at, a, b, out).or_else(|| fold_one(draft, at, b, a, out)) {
            Some(()) => {}
            None => at += 1,
        }
    }
}

/// Folds the sum at step `sum` if `product` comes from a matrix product; `None` leaves the draft as it was.
fn fold_one(draft: &mut Draft, sum: usize, residual: BufferId, product: BufferId, out: BufferId) -> Option<()> {
    let reads = |steps: &[Step], buffer| steps.iter().flat_map(Step::reads).filter(|read| *read == buffer).count();
    let writes = |buffer| draft.steps.iter().position(|step| step.writes().contains(&buffer));
    let dies = |buffer| reads(&draft.steps[sum + 1..], buffer) == 0 && draft.output != buffer;
    if residual == product || !dies(residual) || !dies(product) || draft.inputs.contains(&residual) {
        return None;
    }
    let from = writes(product)?;
    let Step::MatMul { x, projections } = &draft.steps[from] else { return None };
    let place = projections.iter().position(|p| p.out == product && p.residual.is_none())?;
    if reads(&draft.steps[from..sum], product) > 0 {
        return None;
    }
    let to = if writes(residual)? < from {
        // From the product on, the residual's place holds the sum.
        if reads(&draft.steps[from..sum], residual) > 0 {
            return None;
        }
        from
    } else {
        // The residual comes after the product: the product may wait, unless it has company or its input is lost.
        let x = *x;
        let lost = draft.steps[from..sum].iter().flat_map(Step::overwrites).any(|(buffer, _)| buffer == x);
        if projections.len() > 1 || lost || x == residual {
            return None;
        }
        let step = draft.steps.remove(from);
        draft.steps.insert(sum - 1, step);
        sum - 1
    };
    if let Step::MatMul { projections, .. } = &mut draft.steps[to] {
        projections[place].residual = Some(residual);
        projections[place].out = out;
    }
    draft.steps.remove(sum);
    Some(())
}

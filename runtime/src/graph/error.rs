//! Why a graph cannot be built.

/// A graph that makes no sense, found while it is built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Two operands do not fit each other.
    #[error("{node}: {op} cannot take {left} with {right}: {rule}")]
    Shape {
        /// Name of the node.
        node: String,
        /// The operation.
        op: &'static str,
        /// First operand, with its shape.
        left: String,
        /// Second operand, with its shape.
        right: String,
        /// What the operation asks for.
        rule: &'static str,
    },
    /// A parameter of an operation is out of its range.
    #[error("{node}: {op} refuses {what}")]
    Parameter {
        /// Name of the node.
        node: String,
        /// The operation.
        op: &'static str,
        /// The parameter, its value and the rule.
        what: String,
    },
    /// A weight whose declaration is wrong in itself.
    #[error("weight {weight}: {reason}")]
    Weight {
        /// Name of the weight.
        weight: String,
        /// What is wrong.
        reason: String,
    },
    /// An identifier that another builder gave out.
    #[error("{node}: {id} is not of this graph")]
    Foreign {
        /// Name of the node.
        node: String,
        /// The value or weight.
        id: String,
    },
}

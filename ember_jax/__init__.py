"""Networks of LLM calls as JAX programs."""

from ._text.operations import concatenate as concatenate
from ._text.operations import fold_in as fold_in
from ._text.operations import format as format
from ._text.operations import join as join
from ._text.operations import normalize as normalize
from ._text.operations import stack as stack
from ._text.operations import where as where
from ._text.text import Text as Text
from ._text.text import text as text

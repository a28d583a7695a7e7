"""Static files under names that carry their content's hash, those that a script imports included.

A browser keeps such a file for ever, so that the next page asks for nothing that it has.
"""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage


class HashedModules(CompressedManifestStaticFilesStorage):
    """Also rewrites the names in `import ... from`, which Django leaves alone unless asked."""

    support_js_module_import_aggregation = True

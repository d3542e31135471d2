"""What a page carries with it so that it needs no network: plotly, data, and the policy that forbids all else."""

import base64
import gzip
import json
import re
from typing import Any

# Nothing is fetched, sent or framed; plotly compiles functions, and draws through object addresses.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:"
)
_ELSEWHERE = re.compile(r"https://[a-z.-]*(?:plotly\.com|plot\.ly)[^\"'`\s]*")  # where plotly would upload charts to


def plotly_script() -> str:
    """Plotly's JavaScript, without the addresses that it would upload charts to, safe inside a script element.

    Raises:
        ImportError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("the interactive page needs plotly: pip install plotly.") from None
    return _ELSEWHERE.sub("", get_plotlyjs()).replace("</script", "<\\/script")


def in_script(data: Any) -> str:
    """JSON that cannot end the script that holds it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def packed(text: str) -> str:
    """Text compressed for a page (gzip, base64), which a browser unpacks by itself; the same text gives the same."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode("ascii")

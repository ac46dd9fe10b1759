"""Azure's public retail prices for the sizes in use: no account is needed to read them.

One request for a location, once a day. Read by `azure`, made sense of by `facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from shared.errors import ApiError, UnavailableError

ENDPOINT = "https://prices.azure.com/api/retail/prices"
SECONDS = 10.0
PAGES = 20
"""Most pages followed; one holds 1,000 prices, and the filter leaves a handful for each size."""

Document = dict[str, Any]


def retail_prices(
    location: str, sizes: Collection[str], endpoint: str = ENDPOINT
) -> tuple[str, Callable[[], Document]]:
    """What the reading is remembered as, and how to read it: `{"Items": [...]}`.

    The reading raises UnavailableError when nobody answers, ApiError when the answer is no list of prices.
    """
    named = " or ".join(f"armSkuName eq '{_plain(size)}'" for size in sorted(sizes))
    wanted = f"serviceName eq 'Virtual Machines' and armRegionName eq '{_plain(location)}' and ({named})"
    key = f"{ENDPOINT}?$filter={wanted}"
    return key, lambda: {"Items": _read(endpoint, wanted)}


def _read(endpoint: str, wanted: str) -> list[Document]:
    import urllib3

    items: list[Document] = []
    fields: dict[str, str] | None = {"$filter": wanted}
    url = endpoint
    for _ in range(PAGES):
        try:
            answer = urllib3.request("GET", url, fields=fields, timeout=SECONDS, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(
                f"no answer from Azure's retail prices ({type(error).__name__})"
            ) from error
        if answer.status != 200:
            raise ApiError(f"Azure's retail prices answered {answer.status}", status=answer.status)
        document = answer.json()
        items += document.get("Items") or []
        url, fields = str(document.get("NextPageLink") or ""), None
        if not url.startswith(endpoint):
            return items
    return items


def _plain(text: str) -> str:
    """Without what could leave the quotes of the filter."""
    return "".join(letter for letter in text if letter.isalnum() or letter in "_-")

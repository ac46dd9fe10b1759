"""Azure's public retail prices for the sizes in use: no account is needed to read them.

One request for a location, once a day. Read by `azure`, made sense of by `facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec

ENDPOINT = "https://prices.azure.com/api/retail/prices"
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
    from shared.clients.web import get

    items: list[Document] = []
    fields: dict[str, str] | None = {"$filter": wanted}
    url = endpoint
    for _ in range(PAGES):
        document = msgspec.json.decode(get(url, fields, service="Azure's retail prices"))
        items += document.get("Items") or []
        url, fields = str(document.get("NextPageLink") or ""), None
        if not url.startswith(endpoint):
            break
    return items


def _plain(text: str) -> str:
    """Without what could leave the quotes of the filter."""
    return "".join(letter for letter in text if letter.isalnum() or letter in "_-")

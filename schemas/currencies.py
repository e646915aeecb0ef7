"""The currencies that Stripe takes, each with the number of decimals of its amounts there: the only such table.

Stripe's decimals are not always those of ISO 4217: isk and ugx have two (docs.stripe.com/currencies).
"""

from __future__ import annotations

from typing import Final

_NO_DECIMALS: Final = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
_TWO_DECIMALS: Final = """
aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd btn bwp byn bzd cad cdf chf cny cop crc cve
czk dkk dop dzd egp etb eur fjd fkp gbp gel ghs gip gmd gtq gyd hkd hnl htg huf idr ils inr isk jmd kes kgs khr kyd kzt
lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln qar
ron rsd rub sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs uah ugx usd uyu uzs wst xcd xcg yer
zar zmw
"""
_THREE_DECIMALS: Final = "bhd jod kwd omr tnd"

EXPONENTS: Final = {
    currency: exponent
    for exponent, currencies in ((0, _NO_DECIMALS), (2, _TWO_DECIMALS), (3, _THREE_DECIMALS))
    for currency in currencies.split()
}


def currency_exponent(currency: str) -> int:
    """The number of decimals of Stripe's amounts in a currency: 0, 2 or 3. A currency that is new there has 2."""
    return EXPONENTS.get(currency, 2)

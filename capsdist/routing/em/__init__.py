"""EM routing between pose matrices (Hinton, Sabour, Frosst 2018): `route_em` in api.py."""

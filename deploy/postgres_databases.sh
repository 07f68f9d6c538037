#!/bin/sh
# One database and one role each for Dagster and MLflow. The PostgreSQL image runs it once, when its
# volume is empty; on a server of your own, run it as a superuser with the four variables set.
set -eu
: "${POSTGRES_USER:?names the superuser}"
: "${DAGSTER_POSTGRES_PASSWORD:?}" "${MLFLOW_POSTGRES_PASSWORD:?}"
# psql reads them itself: on its command line everybody on the machine could.
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv dagster_password DAGSTER_POSTGRES_PASSWORD
\getenv mlflow_password MLFLOW_POSTGRES_PASSWORD
create role dagster login password :'dagster_password';
create role mlflow login password :'mlflow_password';
create database dagster owner dagster;
create database mlflow owner mlflow;
-- Neither sees the other's: by default everybody may connect.
revoke connect on database dagster from public;
revoke connect on database mlflow from public;
SQL

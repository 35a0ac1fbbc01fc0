#!/bin/sh
# The least rights of each service on Kafka. Run it once, as an administrator, with Kafka's own command:
#
#   BOOTSTRAP=kafka:9093 ADMIN=admin.properties sh deploy/security/kafka-acls.sh
#
# ADMIN is the client configuration of an administrator (security.protocol, sasl.jaas.config ...). KAFKA_ACLS is the command where it is
# not on the PATH. The users must be there (kafka-configs.sh --alter --add-config 'SCRAM-SHA-512=[password=...]' --entity-type users
# --entity-name ingest), and the broker must refuse what nobody has allowed (authorizer.class.name, allow.everyone.if.no.acl.found=false).
#
#   ingest      writes face crops, ends and states of cameras; reads which cameras there are, and which are paused. It cannot read a face crop.
#   infer       reads face crops, writes predictions. It alone can read a face crop, but for the operator.
#   aggregate   reads predictions, writes the ends that cameras did not say. It cannot read a face crop.
#   operator    for the commands `demographics cameras`, `deadletters`, `replay`, `doctor`: creates the topics, writes and pauses cameras, sends
#               records in again, sees how brokers and groups do.
set -eu
: "${BOOTSTRAP:?host:port of a broker}" "${ADMIN:?a client configuration of an administrator}"
TOPICS="--topic face-crops --topic predictions --topic dead-letters --topic cameras --topic camera-switches --topic audit"

allow() {
  users=""
  for user in $(echo "$1" | tr , ' '); do users="$users --allow-principal User:$user"; done
  echo "$@"
  shift
  # shellcheck disable=SC2086  several words are meant
  "${KAFKA_ACLS:-kafka-acls.sh}" --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN" --add --force $users "$@" >/dev/null
}

# shellcheck disable=SC2086
allow ingest,infer,aggregate,operator --operation Describe $TOPICS

allow ingest --operation Write --topic face-crops --topic predictions
allow ingest --operation Read --topic cameras --topic camera-switches --group ingest

allow infer --operation Read --topic face-crops --group inference
allow infer,aggregate --operation Write --topic predictions --topic dead-letters

# shellcheck disable=SC2086
allow aggregate --operation DescribeConfigs $TOPICS
allow aggregate --operation Read --topic predictions --group aggregator

# shellcheck disable=SC2086
allow operator --operation Create --operation Read --operation DescribeConfigs $TOPICS
allow operator --operation Describe --cluster
allow operator --operation Describe --group inference --group aggregator
allow operator --operation Write --topic cameras --topic camera-switches --topic audit --topic face-crops --topic predictions
allow operator --operation Read --group cameras- --resource-pattern-type prefixed

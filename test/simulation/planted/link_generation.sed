# in: native/region/link_table.cc
# A link that is replaced goes on: what was on its way there still lands.
s/if (older) older->kill(Status::fenced);/(void)older;/

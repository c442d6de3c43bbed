# in: native/region/link_table.cc
# A fenced client's connections go on.
s/for (auto& connection : dead) connection->kill(Status::fenced);/dead.clear();/

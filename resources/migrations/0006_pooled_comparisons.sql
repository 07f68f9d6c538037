-- The mixed model with the variance between runs pooled stands beside the pair's own.
alter table study_comparisons add column pooled_low double;
alter table study_comparisons add column pooled_high double;
alter table study_comparisons add column pooled_p_value double;

-- The t-test of the seeds' differences, beside the mixed model and the bootstrap.
alter table study_comparisons add column paired_low double;
alter table study_comparisons add column paired_high double;
alter table study_comparisons add column paired_p_value double;
